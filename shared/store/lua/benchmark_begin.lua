-- Begin the only benchmark of some registrations: those that answer to the name that is measured. ARGV order(JSON): id,
-- model (that name), registrations, lock_ms, fields. Returns {BEGUN|BUSY, id of the benchmark that runs}.
local o = cjson.decode(ARGV[1])
local name = key('benchmark', o.id)
if redis.call('EXISTS', name) == 1 then return {'BEGUN', o.id} end
-- By registration, not by name: a server that answers to two names would else be measured twice at once.
for _, registration in ipairs(o.registrations) do
  local holder = redis.call('GET', key('benchmarking', registration))
  if holder then return {'BUSY', holder} end
end
local fields = o.fields
fields.state = STATE.running
fields.model = o.model
fields.registrations = cjson.encode(o.registrations)
fields.started_ms = NOW_MS
hset(name, fields)
redis.call('PEXPIRE', name, RETENTION_MS)
for _, registration in ipairs(o.registrations) do
  redis.call('SET', key('benchmarking', registration), o.id, 'PX', o.lock_ms)
end
return {'BEGUN', o.id}
