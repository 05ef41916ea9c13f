-- Trim the request stream behind the oldest unacked entry, keeping the newest KEEP.requests of the settled ones.
-- ARGV group, limit. Returns the number of entries removed.
local excess = redis.call('XLEN', K.requests) - KEEP.requests
if excess <= 0 then return 0 end
local floor = nil
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', K.requests)) do
  local group = record(flat)
  if group.name == ARGV[1] then floor = group['last-delivered-id'] end
end
if not floor then return 0 end
local pending = redis.call('XPENDING', K.requests, ARGV[1])
if pending[1] > 0 then floor = pending[2] end
local count = math.min(excess, tonumber(ARGV[2]))
local oldest = redis.call('XRANGE', K.requests, '-', floor, 'COUNT', count + 1)
if #oldest < 2 then return 0 end
return redis.call('XTRIM', K.requests, 'MINID', oldest[#oldest][1])
