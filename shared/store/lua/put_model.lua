-- Register a model that somebody named over HTTP. ARGV order(JSON): nonce, name, registration (JSON text),
-- replace (whether it may exist). Returns CREATED|REPLACED|SAME|EXISTS|FILE.
local o = cjson.decode(ARGV[1])
local before = answered(o.nonce)
if before then return before end
local known = redis.call('HGET', K.models, o.name)
local entry = entry_of(known)
if entry and entry.source == 'file' then return 'FILE' end
if known and not o.replace then return 'EXISTS' end
if known == o.registration then return 'SAME' end
put_model(o.name, o.registration)
return answer(o.nonce, known and 'REPLACED' or 'CREATED')
