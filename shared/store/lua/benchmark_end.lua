-- Record how a benchmark ended. ARGV order(JSON): id, registrations (whose locks it may hold), state, fields,
-- registration (absent: measured several or none), learned (fields of that model's hash). Returns the state recorded,
-- or GONE.
local o = cjson.decode(ARGV[1])
local name = key('benchmark', o.id)
local state = redis.call('HGET', name, 'state')
if state ~= STATE.running then return state or 'GONE' end
local fields = o.fields
fields.state = o.state
fields.finished_ms = NOW_MS
hset(name, fields)
redis.call('PEXPIRE', name, RETENTION_MS)
for _, registration in ipairs(o.registrations) do
  local lock = key('benchmarking', registration)
  if redis.call('GET', lock) == o.id then redis.call('DEL', lock) end
end
if o.registration and redis.call('HEXISTS', K.models, o.registration) == 1 then
  local learned = o.learned
  learned.benchmark_ms = NOW_MS
  hset(key('model', o.registration), learned)
end
return o.state
