-- Accept a job: the bound and the idempotency key are checked here, so that any number of apis can't overshoot.
-- ARGV order(JSON), body. Returns {ACCEPTED|STARTED|DUPLICATE|MISMATCH|FULL|LATE|LIMITED, id, jobs ended a second, now_ms},
-- for LIMITED also the name of the limit and, of the one that knows, in how many ms it has a place; for a job that was
-- queued now (not by an earlier run of this call, and not attached) how many go before it and its queue's hold.
-- An order's `start` (see start.lua) is a decision of the api that holds the client: where nobody waits and all that it
-- assumed still holds, the job starts at once.
local o = cjson.decode(ARGV[1])

local DECIDED_ON = {'model', 'agent_type', 'mode', 'priority', 'prompt_tokens', 'max_tokens', 'min_context_tokens',
  'prefer_llama_cpp', 'fallback', 'deadline_ms', 'attached_to'}

local function known_as()
  local job = redis.call('HMGET', key('job', o.id), 'state', 'nonce')
  return o.start and job[1] == STATE.running and job[2] == o.start.nonce and 'STARTED' or 'ACCEPTED'
end

-- What starts the job at once, nil if it has to queue: whoever waits goes first, and a router decides.
local function starter()
  local s = o.start
  if not s or queued_count() > 0 then return nil end
  local model = record(redis.call('HGETALL', key('model', s.model)))
  if in_the_way(s, model) then return nil end
  return function(fields)
    for name, value in pairs(started(s, o.id, {attempt = 0, metered = fields.metered}, model)) do fields[name] = value end
    tell_start(s, o.id, o.target, fields)
  end
end

if redis.call('EXISTS', key('job', o.id)) == 1 then return {known_as(), o.id, '0', int(NOW)} end
-- A Redis that stood still reads what its clients have given up on: they were told that it was not accepted.
if NOW > o.not_after_ms then return {'LATE', '', '0', int(NOW)} end
if o.idempotency then
  local known = redis.call('GET', key('idempotency', o.idempotency))
  if known then
    local id, digest = string.match(known, '^(%S+) (%S*)$')
    if redis.call('EXISTS', key('job', id)) == 1 then
      return {digest == o.digest and 'DUPLICATE' or 'MISMATCH', id, '0', int(NOW)}
    end
  end
end
if queued_count() >= o.bound then return {'FULL', '', tostring(drain_rate()), int(NOW)} end
local limit, wait_ms = reached_limit(o.limits)
if limit then return {'LIMITED', '', tostring(drain_rate()), int(NOW), limit, wait_ms} end

check_writable(o)
local start = starter()
create_job(o, ARGV[2], start)
count_minute(o.limits, o.id)
if o.idempotency then
  redis.call('SET', key('idempotency', o.idempotency), o.id .. ' ' .. o.digest, 'PX', RETENTION_MS)
end
local entry = {'v', '1', 'type', 'job.request', 'job_id', o.id, 'target', o.target, 'ts_ms', int(NOW)}
note_request(entry, o.fields.request_id)
if start then
  append(entry, {state = STATE.running}) -- nobody has to be woken for it
else
  -- What a router decides on: where nobody else waits it need not look at the queues.
  append(entry, {queued_event = o.fields.queued_event})
  for _, name in ipairs(DECIDED_ON) do
    local value = o.fields[name]
    if value and value ~= '' then append(entry, {[name] = value}) end
  end
end
redis.call('XADD', K.requests, '*', unpack(entry))
if start or attached_to(o) then return {start and 'STARTED' or 'ACCEPTED', o.id, '0', int(NOW)} end
local rank = redis.call('ZRANK', key('ready', o.target), o.id)
return {'ACCEPTED', o.id, '0', int(NOW), rank, redis.call('HGET', K.holds, o.target) or ''}
