-- Take an attempt that an api started for the routers, before its backend is called: where it may be another's by now, or
-- its entry did not hold its body. ARGV id, attempt, router, lease_ms. Returns {TAKEN, ms until its deadline, body} or
-- {STALE}.
local id, router = ARGV[1], ARGV[3]
local job = read(key('job', id), {'state', 'attempt', 'router', 'deadline_ms'})
if job.state ~= STATE.running or job.attempt ~= ARGV[2] or not is_of(router, job) then return {'STALE'} end
redis.call('HSET', key('job', id), 'router', router)
redis.call('ZADD', K.leases, 'XX', int(NOW + tonumber(ARGV[4])), id)
return {'TAKEN', int(tonumber(job.deadline_ms) - NOW), redis.call('GET', key('request', id)) or ''}
