-- Take back jobs whose lease ran out more than the grace ago, and end those whose api is gone.
-- ARGV grace_ms, limit. Returns the ids of both.
local grace, limit = tonumber(ARGV[1]), tonumber(ARGV[2])

local function take_back(id, job)
  local tries = job.tries + 1
  local detail = job.router == '' and 'no router took it in time'
    or 'router ' .. job.router .. ' stopped renewing its lease'
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

-- While Redis or all routers stood still nobody could renew in time: what ran out since the last look runs out now.
-- Only since then, lest looks that are always late put it off for ever.
local last = tonumber(redis.call('HGET', K.swept, 'last_ms') or '')
if last and NOW - last > SWEEPS_STOOD_STILL_MS then
  for _, id in ipairs(redis.call('ZRANGE', K.leases, '(' .. int(last), NOW_MS, 'BYSCORE')) do
    redis.call('ZADD', K.leases, NOW_MS, id)
  end
end

local swept = redis.call('ZRANGE', K.leases, '-inf', int(NOW - grace), 'BYSCORE', 'LIMIT', 0, limit)
for _, id in ipairs(swept) do
  local job = load_job(id)
  if not job then
    forget(id)
  elseif job.state ~= STATE.running then
    redis.call('ZREM', K.leases, id)
  elseif attached_to(job) then
    local detail = 'api ' .. job.attached_to .. ' stopped renewing its lease'
    end_job(id, job, STATE.failed, {error_type = 'lease_lost', error_detail = detail},
      {'error_type', 'lease_lost', 'reason', detail})
  else
    take_back(id, job)
  end
end

local function end_jobs_of(holder)
  local held = key('held_by', holder)
  for _, id in ipairs(redis.call('SRANDMEMBER', held, limit - #swept)) do
    local job = load_job(id)
    if job and (job.state == STATE.queued or job.state == STATE.running) then
      abandon(id, job)
      swept[#swept + 1] = id
    else
      if not job then forget(id) end
      redis.call('SREM', held, id)
    end
  end
  if redis.call('EXISTS', held) == 0 then redis.call('SREM', K.attached, holder) end
end

local holders = redis.call('SMEMBERS', K.attached)
local amnesty_until = tonumber(redis.call('HGET', K.swept, 'amnesty_until_ms') or '0')
-- Heartbeats may be old because nobody could write them: everybody gets time for the next. Not twice in a row, lest
-- sweeps that are always late let nobody be gone.
if #holders > 0 and NOW - (last or 0) > SWEEPS_STOOD_STILL_MS and (last or 0) >= amnesty_until then
  amnesty_until = NOW + HOLDER_SILENT_MS
  redis.call('HSET', K.swept, 'amnesty_until_ms', int(amnesty_until))
end
if NOW >= amnesty_until then
  for _, holder in ipairs(holders) do
    if #swept < limit and not holder_alive(holder) then end_jobs_of(holder) end
  end
end
redis.call('HSET', K.swept, 'last_ms', NOW_MS)
return swept
