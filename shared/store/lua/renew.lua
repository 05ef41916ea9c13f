-- Keep the leases of my attempts. ARGV lease_ms, router ('' for an api's own), then id and attempt of each.
-- Returns RENEWED|CANCEL|STALE for each.
local lease_ms, router = tonumber(ARGV[1]), ARGV[2] ~= '' and ARGV[2] or nil
local outcomes = {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local job = read(key('job', id), {'state', 'attempt', 'cancel_requested_ms', 'router'})
  local owner = job.router
  if job.state ~= STATE.running or job.attempt ~= ARGV[i + 1] or not is_of(router, job) then
    outcomes[#outcomes + 1] = 'STALE'
  else
    if job.router ~= owner then redis.call('HSET', key('job', id), 'router', router) end
    redis.call('ZADD', K.leases, 'XX', int(NOW + lease_ms), id)
    outcomes[#outcomes + 1] = job.cancel_requested_ms and 'CANCEL' or 'RENEWED'
  end
end
return outcomes
