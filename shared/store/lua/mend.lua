-- Take out of one queue what is no waiting job, such as one whose hash was deleted by hand, so that the next one goes.
-- ARGV target. Returns the ids.
local target = ARGV[1]
local ready = key('ready', target)
local lost = {}

-- Returns when the turn of a stray began, nil for a waiting job.
local function take_out(id)
  local state = redis.call('HGET', key('job', id), 'state')
  if state == STATE.queued then return nil end
  local score = redis.call('ZSCORE', ready, id)
  redis.call('ZREM', ready, id)
  if not state then forget(id) end
  lost[#lost + 1] = id
  return contends(score) and tonumber(score) or NOW_EXACT
end

-- Only the hash knew the caller: look through the lines of all of them.
local prefix = string.gsub(line_of(target, ''), '[%*%?%[%]%^%\\]', '\\%0')
for _, line in ipairs(redis.call('KEYS', prefix .. '*')) do
  local since = NOW_EXACT
  for _, id in ipairs(redis.call('ZRANGE', line, 0, -1)) do
    local began = take_out(id)
    if began then
      redis.call('ZREM', line, id)
      since = math.min(since, began)
    end
  end
  bring_forward(ready, line, since)
end
for _, id in ipairs(redis.call('ZRANGE', ready, 0, -1)) do take_out(id) end
if #lost > 0 then redis.call('HDEL', K.holds, target) end
if redis.call('EXISTS', ready) == 0 then redis.call('SREM', K.targets, target) end
return lost
