-- Publish one probe of one backend. ARGV order(JSON): model, boot, seq, age_ms, fields {field = value}, missing [field].
-- Returns STORED|REPLAY.
local o = cjson.decode(ARGV[1])
local model = key('model', o.model)
local last = redis.call('HMGET', model, 'probe_boot', 'probe_seq')
if last[1] == o.boot and tonumber(last[2]) >= o.seq then return 'REPLAY' end
local ts = int(NOW - o.age_ms)
local flat = {'v', '1', 'type', 'backend.sample', 'model', o.model, 'ts_ms', ts}
redis.call('XADD', K.backend_samples, 'MAXLEN', '~', KEEP.backend_samples, '*', unpack(append(flat, o.fields)))
local fields = o.fields
fields.probe_ms = ts
fields.probe_boot = o.boot
fields.probe_seq = int(o.seq)
-- Beside the backend's own counts: how many of those are ours, so that others' can be told from them later.
fields.probe_in_flight = redis.call('HGET', model, 'in_flight') or '0'
if #o.missing > 0 then redis.call('HDEL', model, unpack(o.missing)) end
hset(model, fields)
return 'STORED'
