-- Take back jobs whose lease ran out more than the grace ago. ARGV grace_ms, limit. Returns the ids.
local late = redis.call('ZRANGE', K.leases, '-inf', int(NOW - tonumber(ARGV[1])), 'BYSCORE', 'LIMIT', 0, ARGV[2])
for _, id in ipairs(late) do
  local job = load_job(id)
  if not job then
    forget(id)
  elseif job.state ~= STATE.running then
    redis.call('ZREM', K.leases, id)
  else
    local tries = job.tries + 1
    local detail = 'router ' .. job.router .. ' stopped renewing its lease'
    local fields = {tries = int(tries), error_type = 'lease_lost', error_detail = detail}
    local event_fields = {'reason', detail, 'router', job.router, 'tries', int(tries), 'charged', '1'}
    local state = nil
    if job.cancel_requested_ms then
      state = STATE.cancelled
    elseif tonumber(job.deadline_ms) <= NOW then
      state = STATE.expired
    elseif tries >= tonumber(job.max_attempts) then
      state = STATE.dead
    end
    if state then
      end_job(id, job, state, fields, event_fields)
    else
      requeue(id, job, EVENT.requeued, fields, 0, event_fields)
    end
  end
end
return late
