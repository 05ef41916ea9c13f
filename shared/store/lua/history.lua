-- Included by gpu_sample and claim: the one-minute buckets that forecasts are made from. A day (of UTC) is a hash of
-- its own with the minute of the day as field; that it expires as a whole bounds it without any clearing up.

local MINUTE_MS, DAY_MS = 60000, 86400000

local function bucket(kind, name, at_ms)
  local day = math.floor(at_ms / DAY_MS)
  return key(kind, name .. ':' .. int(day)), int(math.floor(at_ms % DAY_MS / MINUTE_MS)),
    int((day + 1) * DAY_MS + HISTORY_MS)
end

local function count_request(model)
  local name, minute, until_ms = bucket('request_history', model, NOW)
  if redis.call('HINCRBY', name, minute, 1) == 1 then redis.call('PEXPIREAT', name, until_ms) end
end

local function registered_mb(raw)
  -- Anybody may write into this hash by hand: what can't be read has no size.
  local readable, entry = pcall(cjson.decode, raw)
  if not readable or type(entry) ~= 'table' or type(entry.vram_gb) ~= 'number' then return 0 end
  return math.max(0, entry.vram_gb * 1024)
end

-- MB that our models hold on a GPU: those that their latest probe found resident there, as measured, else as
-- registered; what is spread over several GPUs counts in equal parts.
local function placed_mb(gpu)
  local sum = 0
  local registered = redis.call('HGETALL', K.models)
  for i = 1, #registered, 2 do
    local model = redis.call('HMGET', key('model', registered[i]), 'residence', 'gpu', 'memory_mb')
    if model[2] and (model[1] == 'resident' or model[1] == 'draining') then
      local here, all = 0, 0
      for where in string.gmatch(model[2], '[^,]+') do
        all = all + 1
        if where == gpu then here = here + 1 end
      end
      if here > 0 then sum = sum + (tonumber(model[3] or '') or registered_mb(registered[i + 1])) * here / all end
    end
  end
  return sum
end

-- Bucket: samples, then mean and max in MB of used, foreign and managed memory.
local function record_memory(gpu, fields, at_ms)
  local used
  for i = 1, #fields, 2 do
    if fields[i] == 'memory_used_mb' then used = tonumber(fields[i + 1]) end
  end
  if not used or used ~= used or used < 0 or used >= 1e12 then return end
  local managed = placed_mb(gpu)
  local name, minute, until_ms = bucket('gpu_history', gpu, at_ms)
  local old = {}
  for part in string.gmatch(redis.call('HGET', name, minute) or '', '%S+') do old[#old + 1] = tonumber(part) end
  local n = #old == 7 and old[1] or 0
  local line = {int(n + 1)}
  for i, value in ipairs({used, math.max(0, used - managed), managed}) do
    local mean, most = old[2 * i] or value, old[2 * i + 1] or value
    if n == 0 then mean, most = value, value end
    line[#line + 1] = string.format('%.2f %.2f', mean + (value - mean) / (n + 1), math.max(most, value))
  end
  if redis.call('HSET', name, minute, table.concat(line, ' ')) == 1 then redis.call('PEXPIREAT', name, until_ms) end
end
