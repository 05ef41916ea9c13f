-- Record the success of my attempts. ARGV for each order(JSON): id, attempt, fields, learned, router; and its result body.
-- Returns for each {FINISHED|STALE, jobs that wait now}.
local function finish(o, body)
  local job = load_running(o.id)
  if not job or job.attempt ~= o.attempt then return {'STALE', queued_count()} end
  if job.state == STATE.succeeded then return {'FINISHED', queued_count()} end
  if job.state ~= STATE.running or not is_of(o.router, job) then return {'STALE', queued_count()} end
  local running_ms = int(NOW - tonumber(job.started_ms)) -- fails before anything is written
  job.ended_by_holder = true
  o.fields.router = o.router
  redis.call('SET', key('result', o.id), body, 'PX', RETENTION_MS)
  model_succeeded(job, o.learned)
  local waiting = end_job(o.id, job, STATE.succeeded, o.fields,
    {'model', job.decision_model, 'router', job.router, 'running_ms', running_ms})
  return {'FINISHED', waiting}
end

local replies = {}
for i = 1, #ARGV, 2 do replies[#replies + 1] = finish(cjson.decode(ARGV[i]), ARGV[i + 1]) end
return replies
