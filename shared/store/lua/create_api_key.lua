-- Add an API key. ARGV order(JSON): name, id, entry (JSON text without created_ms; no part of the secret but its hash).
-- Returns {CREATED|EXISTS}. A name whose key is revoked can be given again.
local o = cjson.decode(ARGV[1])
local known = redis.call('HGET', K.api_keys, o.name)
if known then
  local before = cjson.decode(known)
  if before.id == o.id then return 'CREATED' end
  if not before.revoked_ms then return 'EXISTS' end
end
local entry = cjson.decode(o.entry)
entry.created_ms = NOW
redis.call('HSET', K.api_keys, o.name, cjson.encode(entry))
redis.call('HDEL', K.api_keys_used, o.name)
xadd(K.control, KEEP.control, 'api_key.created', {'name', o.name}, {'role', entry.role, 'key_id', o.id})
return 'CREATED'
