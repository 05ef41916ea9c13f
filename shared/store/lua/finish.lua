-- Record the success of my attempt. ARGV order(JSON): id, attempt, fields, learned, router; result body.
-- Returns {FINISHED|STALE, jobs that wait now}.
local o = cjson.decode(ARGV[1])
local job = load_running(o.id)
if not job or job.attempt ~= o.attempt then return {'STALE', queued_count()} end
if job.state == STATE.succeeded then return {'FINISHED', queued_count()} end
if job.state ~= STATE.running or not is_of(o.router, job) then return {'STALE', queued_count()} end
job.ended_by_holder = true
o.fields.router = o.router
redis.call('SET', key('result', o.id), ARGV[2], 'PX', RETENTION_MS)
model_succeeded(job.decision_model, o.learned)
local waiting = end_job(o.id, job, STATE.succeeded, o.fields,
  {'model', job.decision_model, 'router', job.router, 'running_ms', int(NOW - tonumber(job.started_ms))})
return {'FINISHED', waiting}
