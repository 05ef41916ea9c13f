-- Take a queued job for one model: everything that the decision assumed is checked again here.
-- ARGV order(JSON): id, nonce, router, lease_ms, model, limit, gpus [{id, limit, level_seq}], fields (job hash),
-- decision (flat list for orch:decisions), keep_holds {code = true}, grant (flat list for the api of an attached job).
-- Returns {CLAIMED, attempt, deadline_ms, body} or {GONE|EXPIRED|BUSY|MOVED|ABANDONED|AWAY}.
local o = cjson.decode(ARGV[1])
local job = load_job(o.id)
if not job then return {'GONE'} end
if job.state == STATE.running and job.nonce == o.nonce then
  return {'CLAIMED', int(job.attempt), job.deadline_ms, redis.call('GET', key('request', o.id)) or ''}
end
-- A claim held up on the way, whose repetition was answered: the attempt that it started has ended since.
if job.nonce == o.nonce then return {'GONE'} end
local score = redis.call('ZSCORE', key('ready', job.target), o.id)
if job.state ~= STATE.queued or not score then return {'GONE'} end
if tonumber(job.deadline_ms) <= NOW then
  end_job(o.id, job, STATE.expired, {error_type = 'deadline', error_detail = 'its deadline passed in the queue'},
    {'reason', 'its deadline passed in the queue'})
  return {'EXPIRED'}
end
local holder = attached_to(job)
if holder and not holder_alive(holder) then
  if not silence_counts() then return {'AWAY'} end
  abandon(o.id, job)
  return {'ABANDONED'}
end
local model = record(redis.call('HGETALL', key('model', o.model)))
local in_flight = tonumber(model.in_flight or '0')
local open_until = tonumber(model.breaker_open_until_ms or '')
if open_until and (NOW < open_until or in_flight > 0) then return {'BUSY'} end
if in_flight >= o.limit then return {'BUSY'} end
for _, gpu in ipairs(o.gpus) do
  local taken = tonumber(redis.call('HGET', key('placement', gpu.id), 'in_flight') or '0')
  if taken >= gpu.limit then return {'BUSY'} end
  local seq = tonumber(redis.call('HGET', key('gpu_level', gpu.id), 'seq') or '0')
  if seq ~= gpu.level_seq then return {'MOVED'} end
end

local attempt = job.attempt + 1
local names = {}
for _, gpu in ipairs(o.gpus) do
  redis.call('HINCRBY', key('placement', gpu.id), 'in_flight', 1)
  names[#names + 1] = gpu.id
end
redis.call('HINCRBY', key('model', o.model), 'in_flight', 1)
-- A retry is no new demand.
if attempt == 1 then
  count_arrival(o.model, model)
  count_request(o.model)
end
local fields = o.fields
fields.state = STATE.running
fields.decision_model = o.model -- the slot taken above is the one to be given back
fields.attempt = int(attempt)
fields.nonce = o.nonce
fields.router = o.router
fields.slot_gpus = table.concat(names, ',')
fields.started_ms = int(NOW)
if contends(score) then fields.score = exact(score) end -- its turn, should it come back
hset(key('job', o.id), fields)
redis.call('HDEL', key('job', o.id), 'hold_code', 'hold_reason', 'due_ms')
dequeue(o.id, job, true)
local hold = redis.call('HGET', K.holds, job.target)
if hold and not o.keep_holds[cjson.decode(hold).code] then redis.call('HDEL', K.holds, job.target) end
redis.call('ZADD', K.leases, int(NOW + o.lease_ms), o.id)
emit(EVENT.started, o.id, STATE.running, attempt,
  {'model', o.model, 'backend', fields.decision_backend or '', 'gpu', fields.slot_gpus, 'router', o.router,
   'reason', fields.decision_reason or ''})
xadd('decisions', 'decision', {'job_id', o.id, 'target', job.target, 'attempt', int(attempt)}, o.decision)
if holder then
  job.attempt = attempt
  tell_holder('job.granted', o.id, job, o.grant)
end
return {'CLAIMED', int(attempt), job.deadline_ms, redis.call('GET', key('request', o.id)) or ''}
