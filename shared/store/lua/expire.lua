-- End waiting jobs whose deadline has passed; a running one is its router's to end, unless that overstays.
-- ARGV overstay_ms, limit. Returns the ids.
local ended = {}
local late = redis.call('ZRANGE', K.live, '-inf', int(NOW), 'BYSCORE', 'LIMIT', 0, ARGV[2])
for _, id in ipairs(late) do
  local job = load_job(id)
  if not job then
    redis.call('ZREM', K.live, id)
  elseif job.state == STATE.queued or tonumber(job.deadline_ms) + tonumber(ARGV[1]) <= NOW then
    local detail = 'its deadline passed ' .. (job.state == STATE.queued and 'in the queue' or 'while it ran')
    end_job(id, job, STATE.expired, {error_type = 'deadline', error_detail = detail}, {'reason', detail})
    ended[#ended + 1] = id
  end
end
return ended
