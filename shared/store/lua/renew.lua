-- Keep the leases of my attempts. ARGV lease_ms, then id and attempt of each. Returns RENEWED|CANCEL|STALE for each.
local outcomes = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local state = redis.call('HMGET', key('job', id), 'state', 'attempt', 'cancel_requested_ms')
  if state[1] ~= STATE.running or state[2] ~= ARGV[i + 1] then
    outcomes[#outcomes + 1] = 'STALE'
  else
    redis.call('ZADD', K.leases, 'XX', int(NOW + tonumber(ARGV[1])), id)
    outcomes[#outcomes + 1] = state[3] and 'CANCEL' or 'RENEWED'
  end
end
return outcomes
