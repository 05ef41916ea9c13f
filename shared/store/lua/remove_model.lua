-- Take a model out of the registry. ARGV order(JSON): nonce, name. Returns REMOVED|UNKNOWN|FILE.
local o = cjson.decode(ARGV[1])
local before = answered(o.nonce)
if before then return before end
local known = redis.call('HGET', K.models, o.name)
if not known then return 'UNKNOWN' end
local entry = entry_of(known)
if entry and entry.source == 'file' then return 'FILE' end
remove_model(o.name, 'http')
return answer(o.nonce, 'REMOVED')
