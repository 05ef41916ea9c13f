-- Everything that one scheduling pass looks at, in one round trip; reads only.
-- ARGV heads per target ('0' = models and GPUs alone). Returns {now_ms, targets, models, gpus} where
-- targets = {{target, waiting, hold JSON, {{id, field, value, ...}, ...}}, ...},
-- models = {{name, registration JSON, hash}, ...}, gpus = {{id, hash, level hash, in_flight}, ...}.

-- Only what a decision reads: a job's metadata alone may be larger than all the rest of the view.
local READ = {'state', 'model', 'agent_type', 'mode', 'priority', 'prompt_tokens', 'max_tokens',
  'min_context_tokens', 'prefer_llama_cpp', 'fallback', 'submitted_ms', 'deadline_ms', 'attempt', 'tries', 'caller',
  'attached_to', 'request_id'}

local function head_of(id)
  local flat = {}
  for i, value in ipairs(redis.call('HMGET', key('job', id), unpack(READ))) do
    if value then
      flat[#flat + 1] = READ[i]
      flat[#flat + 1] = value
    end
  end
  return flat
end

-- Takes out the contestant that goes first; of equal ones the one that came forward first.
local function pop_first(contest)
  local best = 1
  for at, one in ipairs(contest) do
    if one.score < contest[best].score then best = at end
  end
  return table.remove(contest, best)
end

-- The first `heads` jobs in the order in which they would go if all were taken now: with each one its caller's next
-- comes forward.
local function next_jobs(target, ready, heads)
  local contest, lines, jobs = {}, {}, {}
  local front = redis.call('ZRANGE', ready, 0, heads - 1, 'WITHSCORES')
  for i = 1, #front, 2 do
    local score = tonumber(front[i + 1])
    if contends(score) then contest[#contest + 1] = {id = front[i], score = score} end
  end
  while #jobs < heads and #contest > 0 do
    local id = pop_first(contest).id
    local fields = head_of(id)
    jobs[#jobs + 1] = {id, fields}
    local name = line_of(target, record(fields).caller)
    local line = lines[name] or {at = 1, ids = redis.call('ZRANGE', name, 0, heads - 1)}
    lines[name] = line
    local following = line.ids[line.at] == id and line.ids[line.at + 1]
    if following then
      line.at = line.at + 1
      local boost = tonumber(redis.call('HGET', key('job', following), 'boost_ms') or '0')
      contest[#contest + 1] = {id = following, score = NOW_EXACT - boost}
    end
  end
  return jobs
end

local targets, models, gpus = {}, {}, {}
local heads = tonumber(ARGV[1])
if heads > 0 then
  for _, target in ipairs(redis.call('SMEMBERS', K.targets)) do
    local ready = key('ready', target)
    targets[#targets + 1] = {target, redis.call('ZCARD', ready), redis.call('HGET', K.holds, target) or '',
      next_jobs(target, ready, heads)}
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
return {NOW_MS, targets, models, gpus}
