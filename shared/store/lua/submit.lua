-- Accept a job: the bound and the idempotency key are checked here, so that any number of apis can't overshoot.
-- ARGV order(JSON), body. Returns {ACCEPTED|DUPLICATE|MISMATCH|FULL|LATE|LIMITED, id, jobs ended a second, now_ms}, for
-- LIMITED also the name of the limit and, of the one that knows, in how many ms it has a place.
local o = cjson.decode(ARGV[1])
if redis.call('EXISTS', key('job', o.id)) == 1 then return {'ACCEPTED', o.id, '0', int(NOW)} end
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
create_job(o, ARGV[2])
count_minute(o.limits, o.id)
if o.idempotency then
  redis.call('SET', key('idempotency', o.idempotency), o.id .. ' ' .. o.digest, 'PX', RETENTION_MS)
end
redis.call('XADD', K.requests, '*', 'v', '1', 'type', 'job.request', 'job_id', o.id, 'target', o.target,
  'ts_ms', int(NOW))
return {'ACCEPTED', o.id, '0', int(NOW)}
