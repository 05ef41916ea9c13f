-- Settle one intake entry and ack it in the same step. XACK answers 1 once only: that makes a replay silent.
-- ARGV order(JSON): entry, group, and one of: job_id (already accepted), raw | create (+ ARGV[2] body) | reason, raw.
-- Returns {KNOWN|CREATED|DEAD, job id, reason}.
local o = cjson.decode(ARGV[1])

local function dead(reason)
  if redis.call('XACK', K.requests, o.group, o.entry) == 1 then
    xadd(K.dead, KEEP.dead, 'request.dead', {'entry', o.entry, 'reason', reason}, {'raw', o.raw or ''})
  end
  return {'DEAD', '', reason}
end

if o.reason then return dead(o.reason) end
if o.job_id then
  -- pcall, since "<id>:request" names a key of another kind.
  if type(redis.pcall('HGET', key('job', o.job_id), 'state')) ~= 'string' then
    return dead('job_id: no such job; leave job_id out, it is given by the orchestrator')
  end
  redis.call('XACK', K.requests, o.group, o.entry)
  return {'KNOWN', o.job_id, ''}
end
local new = o.create
if redis.call('EXISTS', key('job', new.id)) == 0 then
  -- Settled before, by a call whose reply was lost or by another router: what was refused stays refused.
  -- pcall, since the group is gone after a FLUSHALL; then nothing is pending either.
  if #redis.pcall('XPENDING', K.requests, o.group, o.entry, o.entry, 1) == 0 then
    return {'DEAD', '', 'it was settled before'}
  end
  if queued_count() >= new.bound then
    return dead('the queue is full (' .. int(new.bound) .. ' jobs wait): send it again later')
  end
  check_writable(new, nil)
  WORDS = new.words
  create_job(new, ARGV[2])
end
redis.call('XACK', K.requests, o.group, o.entry)
return {'CREATED', new.id, ''}
