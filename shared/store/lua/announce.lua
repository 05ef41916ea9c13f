-- Write one entry into orch:control. ARGV order(JSON): nonce, kind, fields (flat list). Returns the entry's id.
local o = cjson.decode(ARGV[1])
return answered(o.nonce) or answer(o.nonce, xadd(K.control, KEEP.control, o.kind, {'id', o.nonce}, o.fields))
