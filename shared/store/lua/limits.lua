-- Included by submit: what an API key may have at once and a minute. `limits` has key (its name) and any of in_flight
-- (jobs that have not ended), queued (those of them that wait) and per_minute (jobs accepted in any 60 seconds).

local MINUTE_MS = 60000
local LOOKED_AT = 16

-- A job whose hash was deleted by hand left its id behind: some ids are looked at.
local function forget_lost(name)
  for _, id in ipairs(redis.call('SRANDMEMBER', name, LOOKED_AT)) do
    if redis.call('EXISTS', key('job', id)) == 0 then redis.call('SREM', name, id) end
  end
end

local function live_limit(limits)
  local live = redis.call('SCARD', key('key_live', limits.key))
  if limits.in_flight and live >= limits.in_flight then return 'in_flight' end
  local waiting = live - redis.call('SCARD', key('key_running', limits.key))
  if limits.queued and waiting >= limits.queued then return 'queued' end
  return nil
end

-- Ms until the oldest job of a minute that is full is a minute old, nil if there is room.
local function minute_full_for(limits)
  local name = key('key_minute', limits.key)
  redis.call('ZREMRANGEBYSCORE', name, '-inf', exact(NOW_EXACT - MINUTE_MS))
  if redis.call('ZCARD', name) < limits.per_minute then return nil end
  local oldest = redis.call('ZRANGE', name, -limits.per_minute, -limits.per_minute, 'WITHSCORES')
  return math.max(1, math.ceil(tonumber(oldest[2]) + MINUTE_MS - NOW_EXACT))
end

-- The limit that another job would break and the ms until it has room (0: unknown), nil if there is none.
local function reached_limit(limits)
  if not limits then return nil end
  if live_limit(limits) then
    forget_lost(key('key_live', limits.key))
    forget_lost(key('key_running', limits.key))
    local limit = live_limit(limits)
    if limit then return limit, 0 end
  end
  local wait_ms = limits.per_minute and minute_full_for(limits)
  if wait_ms then return 'per_minute', wait_ms end
  return nil
end

local function count_minute(limits, id)
  if not (limits and limits.per_minute) then return end
  local name = key('key_minute', limits.key)
  redis.call('ZADD', name, exact(NOW_EXACT), id)
  redis.call('PEXPIRE', name, MINUTE_MS)
end
