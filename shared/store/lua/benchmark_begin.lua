-- Begin the only benchmark of a model. ARGV order(JSON): id, model, lock_ms, fields.
-- Returns {BEGUN|BUSY, id of the benchmark that runs}.
local o = cjson.decode(ARGV[1])
local name, lock = key('benchmark', o.id), key('benchmarking', o.model)
if redis.call('EXISTS', name) == 1 then return {'BEGUN', o.id} end
local holder = redis.call('GET', lock)
if holder then return {'BUSY', holder} end
local fields = o.fields
fields.state = STATE.running
fields.model = o.model
fields.started_ms = int(NOW)
hset(name, fields)
redis.call('PEXPIRE', name, RETENTION_MS)
redis.call('SET', lock, o.id, 'PX', o.lock_ms)
return {'BEGUN', o.id}
