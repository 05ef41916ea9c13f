-- Included by submit and admit: write one accepted job. `o` has id, target, caller, boost_ms, deadline_in_ms,
-- attached_to, limits (of the API key that it came with, see limits.lua) and the flat `fields`; `body` is the request
-- as the backend will get it. That of an attached job stays in its api. `start`: see submit.lua.

-- Redis keeps what a script wrote before an error: whatever could fail below is looked at first.
local function check_writable(o)
  if not (RETENTION_MS >= 1 and RETENTION_MS < 2 ^ 53) then error({err = 'ERR jobs.retention_s is out of range'}) end
  local kinds = {
    [K.live] = 'zset', [K.index] = 'zset', [K.targets] = 'set', [K.events] = 'stream', [K.requests] = 'stream',
    [key('ready', o.target)] = 'zset', [line_of(o.target, o.caller)] = 'zset', [K.attached] = 'set',
  }
  if o.limits then
    kinds[key('key_live', o.limits.key)] = 'set'
    kinds[key('key_minute', o.limits.key)] = 'zset'
  end
  if o.start then
    kinds[K.leases], kinds[K.decisions], kinds[key('model', o.start.model)] = 'zset', 'stream', 'hash'
  end
  for name, kind in pairs(kinds) do
    local found = redis.call('TYPE', name).ok
    if found ~= 'none' and found ~= kind then error({err = 'WRONGTYPE ' .. name .. ' is a ' .. found .. ', not a ' .. kind}) end
  end
end

-- `start`: what is called instead of queueing a job that starts at once; it adds to the fields.
local function create_job(o, body, start)
  local place = exact(NOW_EXACT - o.boost_ms)
  local deadline = int(NOW + o.deadline_in_ms)
  local fields = o.fields
  fields.v = '1'
  fields.job_id = o.id
  fields.state = STATE.queued
  fields.target = o.target
  fields.caller = o.caller or ''
  fields.boost_ms = int(o.boost_ms)
  fields.place = place
  fields.score = place
  fields.submitted_ms = int(NOW)
  fields.deadline_ms = deadline
  fields.attempt = '0'
  fields.tries = '0'
  if attached_to(o) then
    fields.attached_to = o.attached_to
    redis.call('SADD', K.attached, o.attached_to)
    redis.call('SADD', key('held_by', o.attached_to), o.id)
  else
    redis.call('SET', key('request', o.id), body)
  end
  if o.limits and (o.limits.in_flight or o.limits.queued) then
    fields.metered = o.limits.key
    redis.call('SADD', key('key_live', o.limits.key), o.id)
  end
  redis.call('ZADD', K.live, deadline, o.id)
  if not start then enqueue(o.id, fields) end
  redis.call('ZADD', K.index, exact(NOW_EXACT), o.id)
  redis.call('ZREMRANGEBYRANK', K.index, 0, -(KEEP.index + 1))
  fields.queued_event = emit(EVENT.queued, o.id, STATE.queued, 0,
    note_request({'target', o.target, 'priority', fields.priority, 'deadline_ms', deadline}, fields.request_id))
  if start then start(fields) end
  hset(key('job', o.id), fields)
end
