-- What several scripts share. K.name, KEEP.name, STATE.name, EVENT.name, GROUP, RETENTION_MS and HISTORY_MS are written in
-- as constants when a script is loaded, and so is what is around the part of key('name', part): see scripts.py.
-- A script validates first and writes last: Redis does not roll back what ran before an error.

local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)
-- Queue order needs more than ms: equal scores would fall back to the order of random ids.
local NOW_EXACT = clock[1] * 1000 + clock[2] / 1000
local NOW_MS = string.format('%.0f', NOW)

local function key(before, behind, part)
  return before .. part .. behind
end

local function int(value)
  return string.format('%.0f', value)
end

local function exact(value)
  return string.format('%.3f', value)
end

local function append(list, fields)
  for name, value in pairs(fields) do
    list[#list + 1] = name
    list[#list + 1] = tostring(value)
  end
  return list
end

local function hset(name, fields)
  local flat = append({}, fields)
  if #flat > 0 then redis.call('HSET', name, unpack(flat)) end
end

local function record(fields)
  local map = {}
  for i = 1, #fields, 2 do map[fields[i]] = fields[i + 1] end
  return map
end

-- Some fields of a hash: most hold more than a script asks for.
local function read(name, fields)
  local map = {}
  for i, value in ipairs(redis.call('HMGET', name, unpack(fields))) do
    if value then map[fields[i]] = value end
  end
  return map
end

-- What an order only passes on (its `words`): flat (field, value, ...), so that it is written as it came. As tables by
-- name, or as so many arguments, it would cost more than Redis' writes.
local WORDS = {}

local function with_words(list, first, last)
  local size = #list
  for i = first, last do list[size + i - first + 1] = WORDS[i] end
  return list
end

-- `pairs` decides no order here: `type` and the identity come first, so that XREVRANGE reads as a log.
local function xadd(stream, keep, kind, head, fields)
  local size = #head
  for i = 1, #fields do head[size + i] = fields[i] end
  head[#head + 1] = 'ts_ms'
  head[#head + 1] = NOW_MS
  return redis.call('XADD', stream, 'MAXLEN', '~', keep, '*', 'v', '1', 'type', kind, unpack(head))
end

local function emit(event, id, state, attempt, fields)
  return redis.call('XADD', K.events, 'MAXLEN', '~', KEEP.events, '*', 'v', '1', 'type', event, 'job_id', id,
    'state', state, 'attempt', attempt, 'ts_ms', NOW_MS, unpack(fields))
end

-- Queue order (docs/adr/0005). A caller's waiting jobs of one target stand in a line by place = submission - boost.
-- Only the first of a line contends with those of other callers, from the moment it came forward; the others are
-- in the same ZSET, scored behind all of these. Callers without a name are one caller.
local PARKED = 1e13
local CONTENDS_BELOW = 5e12 -- ms since 1970: in the year 2128

local function line_of(target, caller)
  return key('caller', #target .. ':' .. target .. ':' .. (caller or ''))
end

local function contends(score)
  return score and tonumber(score) < CONTENDS_BELOW
end

local function park(ready, id, place)
  redis.call('ZADD', ready, exact(PARKED + place), id)
end

-- Let the first of a line contend; `since` is when its caller's turn began.
local function bring_forward(ready, line, since)
  local first = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
  if not first[1] or contends(redis.call('ZSCORE', ready, first[1])) then return end
  local boost = tonumber(redis.call('HGET', key('job', first[1]), 'boost_ms') or '0')
  redis.call('ZADD', ready, exact(math.max(tonumber(first[2]), since - boost)), first[1])
end

-- `job` has target, caller, place and score: where it contends if it is the first of its line.
local function enqueue(id, job)
  local ready, line = key('ready', job.target), line_of(job.target, job.caller)
  local place = job.place or job.score
  local before = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
  redis.call('SADD', K.targets, job.target)
  redis.call('ZADD', line, place, id)
  if redis.call('ZRANGE', line, 0, 0)[1] ~= id then return park(ready, id, place) end
  redis.call('ZADD', ready, job.score, id)
  if before[1] then park(ready, before[1], before[2]) end
end

-- The caller's next turn begins now if this job has had one, now or at an earlier attempt; one that only left passes
-- its turn on.
local function dequeue(id, job, taken)
  local ready, line = key('ready', job.target), line_of(job.target, job.caller)
  local score = redis.call('ZSCORE', ready, id)
  redis.call('ZREM', ready, id)
  redis.call('ZREM', line, id)
  if contends(score) then
    local had_turn = taken or job.attempt > 0
    bring_forward(ready, line, had_turn and NOW_EXACT or score + (job.boost_ms or 0))
  end
  if redis.call('EXISTS', ready) == 0 then
    redis.call('SREM', K.targets, job.target)
    redis.call('HDEL', K.holds, job.target)
  end
end

-- Attached jobs (architecture, "The OpenAI path"): their client waits on a connection of the api `attached_to`, an
-- instance and its boot. Without that api such a job is nobody's.
local HOLDER_SILENT_MS = 3500 -- three heartbeats of one second, and a little
local SWEEPS_STOOD_STILL_MS = 2500
local GRANTS_KEPT_MS = 60000
local WAKES_KEPT = 1000 -- who slept for longer looks by itself

local function attached_to(job)
  return job.attached_to and job.attached_to ~= '' and job.attached_to or nil
end

local function holder_alive(holder)
  local instance, boot = string.match(holder, '^(.*)%.([^.]*)$')
  local known = instance and redis.call('HGET', K.services, instance)
  if not known then return false end
  local read, entry = pcall(cjson.decode, known)
  return read and type(entry) == 'table' and entry.boot == boot
    and (tonumber(entry.heartbeat_ms) or 0) + HOLDER_SILENT_MS > NOW
end

-- Whether silence tells anything now: while Redis or all routers stood still, nobody's heartbeat could be seen.
local function silence_counts()
  local swept = redis.call('HMGET', K.swept, 'last_ms', 'amnesty_until_ms')
  return swept[1] and NOW - tonumber(swept[1]) <= SWEEPS_STOOD_STILL_MS and NOW >= tonumber(swept[2] or '0')
end

-- A job that came with a request: what is said of it names that request, so that it is found from there.
local function note_request(fields, request_id)
  if not request_id or request_id == '' then return fields end
  fields[#fields + 1] = 'request_id'
  fields[#fields + 1] = request_id
  return fields
end

-- `first` to `last`: the decision's words.
local function decide_on(id, target, attempt, request_id, first, last)
  redis.call('XADD', K.decisions, 'MAXLEN', '~', KEEP.decisions, '*', 'v', '1', 'type', 'decision', 'job_id', id,
    'target', target, 'attempt', attempt, 'request_id', request_id or '', 'ts_ms', NOW_MS, unpack(WORDS, first, last))
end

local function note_holder(event_fields, job)
  note_request(event_fields, job.request_id)
  if not attached_to(job) then return end
  event_fields[#event_fields + 1] = 'attached_to'
  event_fields[#event_fields + 1] = job.attached_to
end

-- Tell the api that holds a job's client what became of it.
local function tell_holder(kind, id, job, fields)
  local name = key('grants', job.attached_to)
  redis.call('XADD', name, 'MAXLEN', '~', 10000, '*', 'v', '1', 'type', kind, 'job_id', id,
    'attempt', int(job.attempt), 'ts_ms', NOW_MS, unpack(fields))
  redis.call('PEXPIRE', name, GRANTS_KEPT_MS)
end

-- What no router may sleep through: every one reads this stream, and nothing else that jobs write. What wakes
-- nobody is not in it, so that jobs which come and go while nobody waits cost the routers nothing.
local function wake_routers(kind, id, fields)
  local flat = {'v', '1', 'type', kind, 'job_id', id}
  for i = 1, #fields do flat[6 + i] = fields[i] end
  redis.call('XADD', K.wakes, 'MAXLEN', '~', WAKES_KEPT, '*', unpack(flat))
end

local function queued_count()
  return redis.call('ZCARD', K.live) - redis.call('ZCARD', K.leases)
end

-- Jobs ended a second over the last one to two minutes; 0 when nothing ended.
local function drain_rate()
  local minute = math.floor(NOW / 60000)
  local current = tonumber(redis.call('GET', key('ended', int(minute))) or '0')
  local before = tonumber(redis.call('GET', key('ended', int(minute - 1))) or '0')
  return (current + before) / (60 + (NOW % 60000) / 1000)
end

local function count_down(name, field)
  -- By hand it may have been set to anything.
  if redis.call('HINCRBY', name, field, -1) < 0 then redis.call('HSET', name, field, 0) end
end

-- Give back the slot that a running job holds on its model (unless that was written with what else it left there) and
-- on each of its GPUs.
local function release_slot(job)
  if not job.left_model then count_down(key('model', job.decision_model), 'in_flight') end
  for gpu in string.gmatch(job.slot_gpus or '', '[^,]+') do
    count_down(key('placement', gpu), 'in_flight')
  end
end

-- Jobs of an API key that has limits (`metered`: the key's name) are counted as sets of ids: a replay changes nothing.
local function is_metered(job)
  return job.metered and job.metered ~= ''
end

local function known(job)
  if not job.state then return nil end
  job.attempt = tonumber(job.attempt)
  job.tries = tonumber(job.tries)
  return job
end

local function load_job(id)
  return known(record(redis.call('HGETALL', key('job', id))))
end

-- What is needed of a running job to end it.
local RUNNING_ENDS_WITH = {'state', 'attempt', 'decision_model', 'slot_gpus', 'router', 'started_ms', 'metered',
  'attached_to', 'request_id'}

-- Whether an attempt is this router's: one that an api started for the routers is that of the first to say so. An api
-- names no router for what it runs itself.
local function is_of(router, job)
  if not router or job.router == router then return true end
  if job.router ~= '' then return false end
  job.router = router
  return true
end

local function load_running(id)
  return known(read(key('job', id), RUNNING_ENDS_WITH))
end

-- What is left of a job whose hash somebody deleted by hand; its queue is mended by mend.lua.
local function forget(id)
  for _, name in ipairs({K.live, K.leases, K.delayed, K.index}) do redis.call('ZREM', name, id) end
  redis.call('DEL', key('request', id), key('result', id))
end

-- The one way a job ends: hash, queues, TTLs, event, and the dead-letter line of a job that kept failing. Returns how
-- many wait now. Of a running job RUNNING_ENDS_WITH will do.
local function end_job(id, job, state, fields, event_fields)
  if job.state == STATE.running then
    release_slot(job)
    redis.call('ZREM', K.leases, id)
  else
    redis.call('ZREM', K.delayed, id)
    dequeue(id, job, false)
  end
  if is_metered(job) then
    redis.call('SREM', key('key_live', job.metered), id)
    redis.call('SREM', key('key_running', job.metered), id)
  end
  fields.state = state
  fields.finished_ms = NOW_MS
  hset(key('job', id), fields)
  redis.call('ZREM', K.live, id)
  redis.call('PEXPIRE', key('job', id), RETENTION_MS)
  if not attached_to(job) then redis.call('PEXPIRE', key('request', id), RETENTION_MS) end
  local ended = key('ended', int(math.floor(NOW / 60000)))
  if redis.call('INCR', ended) == 1 then redis.call('PEXPIRE', ended, 300000) end
  if state == STATE.dead then
    xadd(K.dead, KEEP.dead, 'job.dead', {'job_id', id, 'reason', fields.error_detail or ''},
      {'error_type', fields.error_type or ''})
  end
  note_holder(event_fields, job)
  local waiting = queued_count()
  append(event_fields, {waiting = waiting})
  emit('job.' .. state, id, state, job.attempt, event_fields)
  if waiting > 0 then wake_routers('job.' .. state, id, event_fields) end
  if not attached_to(job) then return waiting end
  redis.call('SREM', key('held_by', job.attached_to), id)
  if not job.ended_by_holder then
    tell_holder('job.' .. state, id, job,
      {'state', state, 'error_type', fields.error_type or '', 'error_detail', fields.error_detail or ''})
  end
  return waiting
end

local CLIENT_GONE = 'client_gone'

-- Its client went with its api: never run, nor run again.
local function abandon(id, job)
  local detail = 'the api that held its client is gone: ' .. job.attached_to
  end_job(id, job, STATE.failed, {error_type = CLIENT_GONE, error_detail = detail},
    {'error_type', CLIENT_GONE, 'reason', detail})
end

-- Back into the queue with the place that its submission earned and the turn that it had; `due` > 0 delays it.
local function requeue(id, job, event, fields, due, event_fields)
  release_slot(job)
  redis.call('ZREM', K.leases, id)
  if is_metered(job) then redis.call('SREM', key('key_running', job.metered), id) end
  fields.state = STATE.queued
  hset(key('job', id), fields)
  if due > 0 then
    redis.call('ZADD', K.delayed, due, id)
  else
    enqueue(id, job)
  end
  note_holder(event_fields, job)
  emit(event, id, STATE.queued, job.attempt, event_fields)
  wake_routers(event, id, event_fields)
end

-- Arrivals a second over about the last 10 minutes and 6 hours: counts that fade, so that one number each will do.
local RATE_SPANS_S = {rate_10min = 600, rate_6h = 21600}

local function arrival(model)
  local since = math.max(0, NOW - (tonumber(model.rate_ms or NOW) or NOW)) / 1000
  local update = {rate_ms = NOW_MS, last_used_ms = NOW_MS}
  for field, span in pairs(RATE_SPANS_S) do
    local faded = (tonumber(model[field] or '0') or 0) * math.exp(-since / span)
    update[field] = string.format('%.9g', faded + 1 / span)
  end
  return update
end

local EMA_WEIGHT = 0.2          -- a moving average that mostly stands on the last ten jobs
local FAILURE_WEIGHT = 0.3
local FAILURE_HALF_LIFE_MS = 60000
local OPEN_AFTER_IN_ROW = 3
local OUTCOME_WINDOW = 20
local OPEN_FIRST_MS = 5000
local OPEN_MOST_MS = 300000

local function decayed_failures(model)
  local ema = tonumber(model.failure_ema or '0')
  local age = NOW - tonumber(model.failure_ema_ms or NOW_MS)
  return ema * 2 ^ (-age / FAILURE_HALF_LIFE_MS)
end

local function learn(update, model, field, value, samples)
  if not value then return end
  local old = tonumber(model[field] or '')
  local mean = value
  if old and samples > 0 then
    local weight = math.max(EMA_WEIGHT, 1 / (samples + 1))
    mean = old + weight * (value - old)
  end
  update[field] = string.format('%.9g', mean)
end

-- What a success taught of its model, and its slot there. What stays as it is is not written: of a model that never
-- fails that is all about its failures.
local function model_succeeded(job, learned)
  local name = job.decision_model
  local fields = {'in_flight', 'samples', 'failure_ema', 'failure_ema_ms', 'failures_in_row', 'outcomes',
    'breaker_open_until_ms'}
  for field in pairs(learned) do fields[#fields + 1] = field end
  local model = read(key('model', name), fields)
  local samples = tonumber(model.samples or '0')
  local update = {
    samples = int(samples + 1),
    last_used_ms = NOW_MS,
    in_flight = int(math.max(0, (tonumber(model.in_flight or '0') or 0) - 1)),
  }
  if model.failures_in_row ~= '0' then update.failures_in_row = '0' end
  if model.failure_ema ~= '0' then
    update.failure_ema = string.format('%.6g', decayed_failures(model) * (1 - FAILURE_WEIGHT))
    update.failure_ema_ms = NOW_MS
  end
  local outcomes = string.sub((model.outcomes or '') .. '1', -OUTCOME_WINDOW)
  if model.breaker_open_until_ms then
    redis.call('HDEL', key('model', name), 'breaker_open_until_ms', 'breaker_opens')
    outcomes = ''
  end
  if outcomes ~= model.outcomes then update.outcomes = outcomes end
  for field, value in pairs(learned) do learn(update, model, field, tonumber(value), samples) end
  hset(key('model', name), update)
  job.left_model = true
end

-- Opens the breaker after 3 failures in a row, above half of the last 20, or at once when `open_now`.
local function model_failed(name, detail, open_now)
  local model = record(redis.call('HGETALL', key('model', name)))
  local ema = decayed_failures(model)
  local in_row = tonumber(model.failures_in_row or '0') + 1
  local outcomes = string.sub((model.outcomes or '') .. '0', -OUTCOME_WINDOW)
  local _, failed = string.gsub(outcomes, '0', '')
  local update = {
    failure_count = int(tonumber(model.failure_count or '0') + 1),
    failures_in_row = int(in_row),
    failure_ema = string.format('%.6g', ema + (1 - ema) * FAILURE_WEIGHT),
    failure_ema_ms = NOW_MS,
    outcomes = outcomes,
    last_error = detail,
  }
  local until_ms = tonumber(model.breaker_open_until_ms or '')
  local often = #outcomes == OUTCOME_WINDOW and failed * 2 > OUTCOME_WINDOW
  if until_ms then
    if NOW >= until_ms then
      local opens = tonumber(model.breaker_opens or '1') + 1
      update.breaker_opens = int(opens)
      update.breaker_open_until_ms = int(NOW + math.min(OPEN_FIRST_MS * 2 ^ (opens - 1), OPEN_MOST_MS))
    end
  elseif open_now or in_row >= OPEN_AFTER_IN_ROW or often then
    update.breaker_opens = '1'
    update.breaker_open_until_ms = int(NOW + OPEN_FIRST_MS)
  end
  hset(key('model', name), update)
end
