-- Record how a benchmark ended. ARGV order(JSON): id, model, state, fields, registration (absent: measured several or
-- none), learned (fields of that model's hash). Returns the state recorded, or GONE.
local o = cjson.decode(ARGV[1])
local name, lock = key('benchmark', o.id), key('benchmarking', o.model)
local state = redis.call('HGET', name, 'state')
if state ~= STATE.running then return state or 'GONE' end
local fields = o.fields
fields.state = o.state
fields.finished_ms = int(NOW)
hset(name, fields)
redis.call('PEXPIRE', name, RETENTION_MS)
if redis.call('GET', lock) == o.id then redis.call('DEL', lock) end
if o.registration and redis.call('HEXISTS', K.models, o.registration) == 1 then
  local learned = o.learned
  learned.benchmark_ms = int(NOW)
  hset(key('model', o.registration), learned)
end
return o.state
