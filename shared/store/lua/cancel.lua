-- Cancel a job: at once while it waits, by request while it runs. ARGV id, reason.
-- Returns {CANCELLED|REQUESTED|ENDED|UNKNOWN, state}.
local id = ARGV[1]
local job = load_job(id)
if not job then return {'UNKNOWN', ''} end
if job.state == STATE.cancelled then return {'CANCELLED', job.state} end
if job.state == STATE.queued then
  end_job(id, job, STATE.cancelled, {error_type = 'cancelled', error_detail = ARGV[2]}, {'reason', ARGV[2]})
  return {'CANCELLED', STATE.cancelled}
end
if job.state ~= STATE.running then return {'ENDED', job.state} end
if not job.cancel_requested_ms then
  redis.call('HSET', key('job', id), 'cancel_requested_ms', NOW_MS)
  emit(EVENT.cancel_requested, id, job.state, job.attempt, {'reason', ARGV[2], 'router', job.router})
  wake_routers(EVENT.cancel_requested, id, {})
  if attached_to(job) then tell_holder(EVENT.cancel_requested, id, job, {'error_detail', ARGV[2]}) end
end
return {'REQUESTED', job.state}
