-- Included by submit and admit: write one accepted job. `o` has id, target, caller, boost_ms, spacing_ms,
-- deadline_in_ms and the flat `fields`; `body` is the request as the backend will get it.

-- Virtual arrival time: jobs of one known caller space themselves out, so that a greedy one can't fill the front.
local function arrival(o)
  if not o.caller or o.spacing_ms <= 0 then return NOW_EXACT end
  local last_key = key('caller', o.target .. ':' .. o.caller)
  local last = tonumber(redis.call('GET', last_key) or '0')
  local at = math.max(NOW_EXACT, last)
  redis.call('SET', last_key, exact(at + o.spacing_ms), 'PXAT', int(at + o.spacing_ms + 1))
  return at
end

local function create_job(o, body)
  local score = exact(arrival(o) - o.boost_ms)
  local deadline = int(NOW + o.deadline_in_ms)
  local fields = o.fields
  fields.v = '1'
  fields.job_id = o.id
  fields.state = STATE.queued
  fields.target = o.target
  fields.score = score
  fields.submitted_ms = int(NOW)
  fields.deadline_ms = deadline
  fields.attempt = '0'
  fields.tries = '0'
  redis.call('SET', key('request', o.id), body)
  redis.call('ZADD', K.live, deadline, o.id)
  enqueue(o.id, o.target, score)
  redis.call('ZADD', K.index, exact(NOW_EXACT), o.id)
  redis.call('ZREMRANGEBYRANK', K.index, 0, -(KEEP.index + 1))
  fields.queued_event = emit(EVENT.queued, o.id, STATE.queued, 0,
    {'target', o.target, 'priority', fields.priority, 'deadline_ms', deadline})
  hset(key('job', o.id), fields)
end
