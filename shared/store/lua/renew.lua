-- Keep the lease of my attempt. ARGV id, attempt, lease_ms. Returns RENEWED|CANCEL|STALE.
local state = redis.call('HMGET', key('job', ARGV[1]), 'state', 'attempt', 'cancel_requested_ms')
if state[1] ~= STATE.running or state[2] ~= ARGV[2] then return 'STALE' end
redis.call('ZADD', K.leases, 'XX', int(NOW + tonumber(ARGV[3])), ARGV[1])
return state[3] and 'CANCEL' or 'RENEWED'
