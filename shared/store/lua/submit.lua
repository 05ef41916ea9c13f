-- Accept a job: the bound and the idempotency key are checked here, so that any number of apis can't overshoot.
-- ARGV order(JSON), body. Returns {ACCEPTED|DUPLICATE|MISMATCH|FULL, id, jobs ended a second}.
local o = cjson.decode(ARGV[1])
if redis.call('EXISTS', key('job', o.id)) == 1 then return {'ACCEPTED', o.id, '0'} end
if o.idempotency then
  local known = redis.call('GET', key('idempotency', o.idempotency))
  if known then
    local id, digest = string.match(known, '^(%S+) (%S*)$')
    if redis.call('EXISTS', key('job', id)) == 1 then
      return {digest == o.digest and 'DUPLICATE' or 'MISMATCH', id, '0'}
    end
  end
end
if queued_count() >= o.bound then return {'FULL', '', tostring(drain_rate())} end

create_job(o, ARGV[2])
if o.idempotency then
  redis.call('SET', key('idempotency', o.idempotency), o.id .. ' ' .. o.digest, 'PX', RETENTION_MS)
end
redis.call('XADD', K.requests, '*', 'v', '1', 'type', 'job.request', 'job_id', o.id, 'target', o.target,
  'ts_ms', int(NOW))
return {'ACCEPTED', o.id, '0'}
