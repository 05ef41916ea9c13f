-- A benchmark's heartbeat, and whether live traffic wants its model. ARGV order(JSON): id, model, lock_ms, caller,
-- agents {agent type = true} (absent: any), fields.
-- Returns {RUNNING|ENDED|LOST, jobs of others that wait for the model}.
local o = cjson.decode(ARGV[1])
local name, lock = key('benchmark', o.id), key('benchmarking', o.model)
if redis.call('HGET', name, 'state') ~= STATE.running then return {'ENDED', 0} end
local holder = redis.call('GET', lock)
if holder and holder ~= o.id then return {'LOST', 0} end
redis.call('SET', lock, o.id, 'PX', o.lock_ms)
hset(name, o.fields)
local live = redis.call('ZCARD', key('ready', o.model)) - redis.call('ZCARD', line_of(o.model, o.caller))
for _, target in ipairs(redis.call('SMEMBERS', K.targets)) do
  local agent = string.match(target, '^auto:(.*)$')
  if agent and (agent == '*' or not o.agents or o.agents[agent]) then
    live = live + redis.call('ZCARD', key('ready', target))
  end
end
return {'RUNNING', live}
