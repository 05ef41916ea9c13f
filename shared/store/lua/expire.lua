-- End waiting jobs whose deadline has passed; a running one is its router's to end, unless that overstays.
-- ARGV overstay_ms, limit. Returns the ids.
local overstay, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local ended, running = {}, 0

local function end_if_due(id)
  local job = load_job(id)
  if not job then
    forget(id)
  elseif job.state == STATE.queued or tonumber(job.deadline_ms) + overstay <= NOW then
    local detail = 'its deadline passed ' .. (job.state == STATE.queued and 'in the queue' or 'while it ran')
    end_job(id, job, STATE.expired, {error_type = 'deadline', error_detail = detail}, {'reason', detail})
    ended[#ended + 1] = id
  else
    running = running + 1
  end
end

repeat
  -- Running ones stay in the list: step over them, so that they don't shield the waiting ones behind them.
  local late = redis.call('ZRANGE', K.live, '-inf', NOW_MS, 'BYSCORE', 'LIMIT', running, limit - #ended)
  for _, id in ipairs(late) do end_if_due(id) end
until #late == 0 or #ended >= limit
return ended
