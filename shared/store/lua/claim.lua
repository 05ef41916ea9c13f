-- Take queued jobs, each for one model: everything that the decision assumed is checked again here.
-- ARGV: for each an order(JSON): id, words, what start.lua reads, keep_holds {code = true}, alone (the job's queued_event: it was decided on by what submit.lua
-- wrote of it, and is refused unless it is that very job, as new as it was, and nobody else waits). Returns for each {CLAIMED, attempt, deadline_ms, body} or {GONE|EXPIRED|BUSY|MOVED|ABANDONED|AWAY|SKIPPED}.

-- One reply with many large bodies would outlast its client's time-out, at every repetition: what comes after this
-- much waits for the next call.
local MOST_BYTES = 1048576
local bytes = 0

local function claimed(id, attempt, deadline_ms)
  local body = redis.call('GET', key('request', id)) or ''
  bytes = bytes + #body
  return {'CLAIMED', int(attempt), deadline_ms, body}
end

local function start(o, job, model, score)
  local slot_gpus = started(o, o.id, job, model, 1)
  if not contends(score) then score = job.score or job.place or '0' end -- else its turn, should it come back
  redis.call('HSET', key('job', o.id), 'state', STATE.running, 'attempt', job.attempt, 'decision_model', o.model,
    'nonce', o.nonce, 'router', o.router, 'slot_gpus', slot_gpus, 'started_ms', NOW_MS, 'score', exact(score),
    unpack(WORDS, 1, o.fields))
  redis.call('HDEL', key('job', o.id), 'hold_code', 'hold_reason', 'due_ms')
  dequeue(o.id, job, true)
  local hold = redis.call('HGET', K.holds, job.target)
  if hold and not o.keep_holds[cjson.decode(hold).code] then redis.call('HDEL', K.holds, job.target) end
  if attached_to(job) then tell_holder('job.granted', o.id, job, grant_words({}, o, 1)) end
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
  WORDS = o.words
  local job = load_job(o.id)
  if not job then return {'GONE'} end
  if job.state == STATE.running and job.nonce == o.nonce then return claimed(o.id, job.attempt, job.deadline_ms) end
  -- A claim held up on the way, whose repetition was answered: the attempt that it started has ended since.
  if job.nonce == o.nonce then return {'GONE'} end
  local score = redis.call('ZSCORE', key('ready', job.target), o.id)
  if job.state ~= STATE.queued or not score then return {'GONE'} end
  if refused[job.target] or bytes > MOST_BYTES then return {'SKIPPED'} end
  if o.alone and (job.queued_event ~= o.alone or job.attempt > 0 or queued_count() > 1) then return {'SKIPPED'} end
  -- Its api has to be told where to go.
  if attached_to(job) and o.grant == 0 then return {'SKIPPED'} end
  local outcome = ended_instead(o, job)
  if outcome then
    refused[job.target] = outcome == 'AWAY'
    return {outcome}
  end
  local model = load_model(o.model)
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
