-- Take queued jobs, each for one model: everything that the decision assumed is checked again here.
-- ARGV: for each an order(JSON): id, nonce, router, lease_ms, model, limit, gpus [{id, limit, level_seq}], fields (job
-- hash), decision (flat list for orch:decisions), keep_holds {code = true}, grant (flat list for the api of an attached
-- job). Returns for each {CLAIMED, attempt, deadline_ms, body} or {GONE|EXPIRED|BUSY|MOVED|ABANDONED|AWAY|SKIPPED}.

-- One reply with many large bodies would outlast its client's time-out, at every repetition: what comes after this
-- much waits for the next call.
local MOST_BYTES = 1048576
local bytes = 0

local function claimed(id, attempt, deadline_ms)
  local body = redis.call('GET', key('request', id)) or ''
  bytes = bytes + #body
  return {'CLAIMED', int(attempt), deadline_ms, body}
end

-- Why a slot can't be taken now, nil if it can.
local function in_the_way(o, model)
  local in_flight = tonumber(model.in_flight or '0')
  local open_until = tonumber(model.breaker_open_until_ms or '')
  if open_until and (NOW < open_until or in_flight > 0) then return 'BUSY' end
  if in_flight >= o.limit then return 'BUSY' end
  for _, gpu in ipairs(o.gpus) do
    local taken = tonumber(redis.call('HGET', key('placement', gpu.id), 'in_flight') or '0')
    if taken >= gpu.limit then return 'BUSY' end
    local seq = tonumber(redis.call('HGET', key('gpu_level', gpu.id), 'seq') or '0')
    if seq ~= gpu.level_seq then return 'MOVED' end
  end
  return nil
end

local function take_slot(o)
  local names = {}
  for _, gpu in ipairs(o.gpus) do
    redis.call('HINCRBY', key('placement', gpu.id), 'in_flight', 1)
    names[#names + 1] = gpu.id
  end
  redis.call('HINCRBY', key('model', o.model), 'in_flight', 1)
  return table.concat(names, ',')
end

local function start(o, job, model, score)
  local slot_gpus = take_slot(o)
  job.attempt = job.attempt + 1
  -- A retry is no new demand.
  if job.attempt == 1 then
    count_arrival(o.model, model)
    count_request(o.model)
  end
  local fields = o.fields
  fields.state = STATE.running
  fields.decision_model = o.model -- the slot taken above is the one to be given back
  fields.attempt = int(job.attempt)
  fields.nonce = o.nonce
  fields.router = o.router
  fields.slot_gpus = slot_gpus
  fields.started_ms = int(NOW)
  if contends(score) then fields.score = exact(score) end -- its turn, should it come back
  hset(key('job', o.id), fields)
  redis.call('HDEL', key('job', o.id), 'hold_code', 'hold_reason', 'due_ms')
  dequeue(o.id, job, true)
  local hold = redis.call('HGET', K.holds, job.target)
  if hold and not o.keep_holds[cjson.decode(hold).code] then redis.call('HDEL', K.holds, job.target) end
  redis.call('ZADD', K.leases, int(NOW + o.lease_ms), o.id)
  if is_metered(job) then redis.call('SADD', key('key_running', job.metered), o.id) end
  emit(EVENT.started, o.id, STATE.running, job.attempt,
    {'model', o.model, 'backend', fields.decision_backend or '', 'gpu', slot_gpus, 'router', o.router,
     'reason', fields.decision_reason or ''})
  xadd('decisions', 'decision', {'job_id', o.id, 'target', job.target, 'attempt', int(job.attempt)}, o.decision)
  if attached_to(job) then tell_holder('job.granted', o.id, job, o.grant) end
  return claimed(o.id, job.attempt, job.deadline_ms)
end

-- Why a waiting job ends instead of starting, nil if it may start.
local function ended_instead(o, job)
  if tonumber(job.deadline_ms) <= NOW then
    local detail = 'its deadline passed in the queue'
    end_job(o.id, job, STATE.expired, {error_type = 'deadline', error_detail = detail}, {'reason', detail})
    return 'EXPIRED'
  end
  local holder = attached_to(job)
  if holder and not holder_alive(holder) then
    if not silence_counts() then return 'AWAY' end
    abandon(o.id, job)
    return 'ABANDONED'
  end
  return nil
end

local refused = {} -- targets that keep their order: nothing goes before a job that has to wait

local function claim(o)
  local job = load_job(o.id)
  if not job then return {'GONE'} end
  if job.state == STATE.running and job.nonce == o.nonce then return claimed(o.id, job.attempt, job.deadline_ms) end
  -- A claim held up on the way, whose repetition was answered: the attempt that it started has ended since.
  if job.nonce == o.nonce then return {'GONE'} end
  local score = redis.call('ZSCORE', key('ready', job.target), o.id)
  if job.state ~= STATE.queued or not score then return {'GONE'} end
  if refused[job.target] or bytes > MOST_BYTES then return {'SKIPPED'} end
  local outcome = ended_instead(o, job)
  if outcome then
    refused[job.target] = outcome == 'AWAY'
    return {outcome}
  end
  local model = record(redis.call('HGETALL', key('model', o.model)))
  outcome = in_the_way(o, model)
  if outcome then
    refused[job.target] = true
    return {outcome}
  end
  return start(o, job, model, score)
end

local replies = {}
for at, raw in ipairs(ARGV) do replies[at] = claim(cjson.decode(raw)) end
return replies
