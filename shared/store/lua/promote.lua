-- Move delayed jobs that are due back into their queues. ARGV limit. Returns {moved ids, ms until the next one}.
local due = redis.call('ZRANGE', K.delayed, '-inf', NOW_MS, 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do
  redis.call('ZREM', K.delayed, id)
  local job = load_job(id)
  if not job then
    forget(id)
  elseif job.state == STATE.queued then
    redis.call('HDEL', key('job', id), 'due_ms')
    enqueue(id, job)
  end
end
local next_due = redis.call('ZRANGE', K.delayed, 0, 0, 'WITHSCORES')
return {due, next_due[2] and int(math.max(0, tonumber(next_due[2]) - NOW)) or ''}
