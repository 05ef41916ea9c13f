-- Take an instance off the list of services, if it is mine. ARGV instance, boot. Returns 1 or 0.
local known = redis.call('HGET', K.services, ARGV[1])
if not known then return 0 end
local read, entry = pcall(cjson.decode, known)
if read and type(entry) == 'table' and entry.boot == ARGV[2] then return redis.call('HDEL', K.services, ARGV[1]) end
return 0
