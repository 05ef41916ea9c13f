-- Included by gpu_sample and claim: the one-minute buckets that forecasts are made from. A day (of UTC) is a hash of
-- its own with the minute of the day as field; that it expires as a whole bounds it without any clearing up.

local MINUTE_MS, DAY_MS = 60000, 86400000

local function bucket(series, at_ms)
  local day = math.floor(at_ms / DAY_MS)
  return series .. ':' .. int(day), int(math.floor(at_ms % DAY_MS / MINUTE_MS)),
    int((day + 1) * DAY_MS + HISTORY_MS)
end

local function count_request(model)
  local name, minute, until_ms = bucket(key('request_history', model), NOW)
  if redis.call('HINCRBY', name, minute, 1) == 1 then redis.call('PEXPIREAT', name, until_ms) end
end

local function entry_of(raw)
  -- Anybody may write into this hash by hand: what can't be read is no model of ours.
  local readable, entry = pcall(cjson.decode, raw)
  return readable and type(entry) == 'table' and entry or nil
end

local function registered_mb(entry)
  return type(entry.vram_gb) == 'number' and math.max(0, entry.vram_gb * 1024) or 0
end

-- As in snapshots.py (probe_stale_ms): older than this a probe says nothing of the moment of a reading.
local PROBE_STALE_INTERVALS, PROBE_STALE_LEAST_MS = 5, 10000

-- Whether a model may hold memory of that host and nobody has looked: its first probe is still to come, or was so long
-- ago that it may be gone. A server that was found unreachable has been looked at.
local function is_unseen(entry, probe_ms, host, at_ms, stale_ms)
  if type(entry.host) == 'string' and entry.host ~= host then return false end
  return not probe_ms or at_ms - probe_ms > stale_ms
end

local HOLDS = {resident = true, draining = true}
local MOVES = {loading = true, unloading = true}

-- MB that our models hold on a GPU: those that their latest probe found resident there, as measured, else as
-- registered, and those that come or go, as measured; what is spread over several GPUs counts in equal parts.
-- nil: not known yet.
local function placed_mb(gpu, at_ms, interval_ms)
  local sum, host = 0, string.match(gpu, '^(.*)/')
  local stale_ms = math.max(PROBE_STALE_LEAST_MS, PROBE_STALE_INTERVALS * interval_ms)
  local registered = redis.call('HGETALL', K.models)
  -- An api registers the models when it starts, perhaps after the first readings.
  if #registered == 0 then return nil end
  for i = 1, #registered, 2 do
    local entry = entry_of(registered[i + 1])
    local model = redis.call('HMGET', key('model', registered[i]), 'residence', 'gpu', 'memory_mb', 'probe_ms')
    if entry and is_unseen(entry, tonumber(model[4] or ''), host, at_ms, stale_ms) then return nil end
    if entry and model[2] and (HOLDS[model[1]] or MOVES[model[1]]) then
      local here, all = 0, 0
      for where in string.gmatch(model[2], '[^,]+') do
        all = all + 1
        if where == gpu then here = here + 1 end
      end
      local size = tonumber(model[3] or '')
      if here > 0 and not size and MOVES[model[1]] then return nil end
      if here > 0 then sum = sum + (size or registered_mb(entry)) * here / all end
    end
  end
  return sum
end

-- Bucket: samples, then mean and max in MB of used, foreign and managed memory. While it is not known what is ours
-- there is none: a minute that takes our own models for somebody else's would be forecast for days.
local function record_memory(gpu, fields, at_ms)
  local reading = record(fields)
  local used, interval_ms = tonumber(reading.memory_used_mb or ''), tonumber(reading.interval_ms or '')
  if not used or used ~= used or used < 0 or used >= 1e12 then return end
  local managed = placed_mb(gpu, at_ms, interval_ms or 0)
  if not managed then return end
  local name, minute, until_ms = bucket(key('gpu_history', gpu), at_ms)
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
