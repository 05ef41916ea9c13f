-- Revoke an API key. ARGV name. Returns REVOKED|UNKNOWN. Its entry stays, without its hash: that keys were ever made
-- keeps the api closed when the last one goes.
local known = redis.call('HGET', K.api_keys, ARGV[1])
if not known then return 'UNKNOWN' end
local entry = cjson.decode(known)
if entry.revoked_ms then return 'REVOKED' end
entry.revoked_ms = NOW
entry.hash = nil
redis.call('HSET', K.api_keys, ARGV[1], cjson.encode(entry))
xadd(K.control, KEEP.control, 'api_key.revoked', {'name', ARGV[1]}, {'role', entry.role, 'key_id', entry.id})
return 'REVOKED'
