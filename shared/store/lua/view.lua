-- Everything that one scheduling pass looks at, in one round trip; reads only.
-- ARGV heads per target ('0' = models and GPUs alone). Returns {now_ms, targets, models, gpus} where
-- targets = {{target, waiting, hold JSON, {{id, field, value, ...}, ...}}, ...},
-- models = {{name, registration JSON, hash}, ...}, gpus = {{id, hash, level hash, in_flight}, ...}.
local targets, models, gpus = {}, {}, {}
local heads = tonumber(ARGV[1])
if heads > 0 then
  for _, target in ipairs(redis.call('SMEMBERS', K.targets)) do
    local ready = key('ready', target)
    local jobs = {}
    for _, id in ipairs(redis.call('ZRANGE', ready, 0, heads - 1)) do
      jobs[#jobs + 1] = {id, redis.call('HGETALL', key('job', id))}
    end
    targets[#targets + 1] = {target, redis.call('ZCARD', ready), redis.call('HGET', K.holds, target) or '', jobs}
  end
end
local registered = redis.call('HGETALL', K.models)
for i = 1, #registered, 2 do
  models[#models + 1] = {registered[i], registered[i + 1], redis.call('HGETALL', key('model', registered[i]))}
end
for _, id in ipairs(redis.call('SMEMBERS', K.gpus)) do
  gpus[#gpus + 1] = {id, redis.call('HGETALL', key('gpu', id)), redis.call('HGETALL', key('gpu_level', id)),
    redis.call('HGET', key('placement', id), 'in_flight') or '0'}
end
return {int(NOW), targets, models, gpus}
