-- Enroll or renew a service instance. ARGV instance, boot, entry(JSON object), ttl_ms. Returns ALIVE|TAKEN.
local known = redis.call('HGET', K.services, ARGV[1])
if known then
  local read, entry = pcall(cjson.decode, known)
  if not read or type(entry) ~= 'table' then entry = {boot = ARGV[2]} end
  if entry.boot ~= ARGV[2] and (tonumber(entry.heartbeat_ms) or 0) + tonumber(ARGV[4]) > NOW then return 'TAKEN' end
end
local entry = cjson.decode(ARGV[3])
entry.boot = ARGV[2]
entry.heartbeat_ms = NOW
redis.call('HSET', K.services, ARGV[1], cjson.encode(entry))
return 'ALIVE'
