-- Included by submit and admit: write one accepted job. `o` has id, target, caller, priority, request_id, boost_ms,
-- deadline_in_ms, attached_to, limits (of the API key that it came with, see limits.lua), metered (that key, if it counts
-- its jobs) and `fields`: how many of the WORDS, the first, are the job's hash; `body` is the request as the backend will
-- get it. That of an attached job stays in its api. `start`: see submit.lua.

-- Redis keeps what a script wrote before an error: whatever could fail below is looked at first, but for what has been
-- read by then (live and leases by queued_count, the limits' sets by reached_limit, the model by load_model, requests by
-- is_all_read) and what is written first (attached).
local function check_writable(o, start)
  local kinds = {[K.index] = 'zset', [K.events] = 'stream'}
  if not (start and attached_to(o)) then kinds[K.requests] = 'stream' end
  if start then
    kinds[K.decisions] = 'stream'
  else
    kinds[K.targets], kinds[key('ready', o.target)], kinds[line_of(o.target, o.caller)] = 'set', 'zset', 'zset'
  end
  for name, kind in pairs(kinds) do
    local found = redis.call('TYPE', name).ok
    if found ~= 'none' and found ~= kind then error({err = 'WRONGTYPE ' .. name .. ' is a ' .. found .. ', not a ' .. kind}) end
  end
end

-- `start`: what is called for a job that starts at once, instead of queueing it; it writes the job's hash.
-- Returns the id of the job's first event and when its deadline is.
local function create_job(o, body, start)
  local place = exact(NOW_EXACT - o.boost_ms)
  local deadline = int(NOW + o.deadline_in_ms)
  if attached_to(o) then
    redis.call('SADD', K.attached, o.attached_to)
    redis.call('SADD', key('held_by', o.attached_to), o.id)
  else
    redis.call('SET', key('request', o.id), body)
  end
  if is_metered(o) then redis.call('SADD', key('key_live', o.metered), o.id) end
  redis.call('ZADD', K.live, deadline, o.id)
  if not start then enqueue(o.id, {target = o.target, caller = o.caller, score = place}) end
  redis.call('ZADD', K.index, exact(NOW_EXACT), o.id)
  redis.call('ZREMRANGEBYRANK', K.index, '0', KEEP.index_end)
  local event = emit(EVENT.queued, o.id, STATE.queued, '0',
    note_request({'target', o.target, 'priority', o.priority, 'deadline_ms', deadline}, o.request_id))
  if start then
    start(place, deadline, event)
  else
    redis.call('HSET', key('job', o.id), 'state', STATE.queued, 'attempt', '0', 'tries', '0', 'place', place,
      'score', place, 'submitted_ms', NOW_MS, 'deadline_ms', deadline, 'queued_event', event,
      unpack(WORDS, 1, o.fields))
  end
  return event, deadline
end
