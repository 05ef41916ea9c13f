-- A benchmark's heartbeat, and whether live traffic wants what it measures. ARGV order(JSON): id, model, registrations
-- (that answer to this name now), names {public name = true} that they answer to, lock_ms, caller, agents
-- {agent type = true} (absent: any), fields. Returns {RUNNING|ENDED|LOST, jobs of others that wait for them}.
local o = cjson.decode(ARGV[1])
local name = key('benchmark', o.id)
if redis.call('HGET', name, 'state') ~= STATE.running then return {'ENDED', 0} end
for _, registration in ipairs(o.registrations) do
  local holder = redis.call('GET', key('benchmarking', registration))
  if holder and holder ~= o.id then return {'LOST', 0} end
end
for _, registration in ipairs(o.registrations) do
  redis.call('SET', key('benchmarking', registration), o.id, 'PX', o.lock_ms)
end
local fields = o.fields
fields.registrations = cjson.encode(o.registrations)
hset(name, fields)
local live = 0
for _, target in ipairs(redis.call('SMEMBERS', K.targets)) do
  local agent = string.match(target, '^auto:(.*)$')
  local served = agent and (agent == '*' or not o.agents or o.agents[agent])
  if served or o.names[target] then live = live + redis.call('ZCARD', key('ready', target)) end
  if target == o.model and o.names[target] then live = live - redis.call('ZCARD', line_of(target, o.caller)) end
end
return {'RUNNING', live}
