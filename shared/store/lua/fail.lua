-- Record that my attempt did not succeed. ARGV order(JSON): id, attempt, kind, error_type, detail, delay_ms,
-- charge, model_failure (none|failed|refused), saturated_ms, name_unknown_ms, fields, router.
-- kind: retry (another try, or dead when they are used up), failed, cancelled, expired, released (handed over).
-- Returns {QUEUED|FAILED|DEAD|CANCELLED|EXPIRED|STALE}.
local o = cjson.decode(ARGV[1])
local job = load_job(o.id)
if not job then return 'STALE' end
if job.settled == int(o.attempt) then return job.settled_as end
if job.state ~= STATE.running or job.attempt ~= o.attempt or not is_of(o.router, job) then return 'STALE' end

local model = job.decision_model
if o.model_failure ~= 'none' then model_failed(model, o.detail, o.model_failure == 'refused') end
if o.saturated_ms > 0 then
  redis.call('HSET', key('model', model), 'saturated_until_ms', int(NOW + o.saturated_ms))
end
if o.name_unknown_ms > 0 then
  local entry = entry_of(redis.call('HGET', K.models, model))
  if entry and entry.upstream_name then
    o.kind = 'failed' -- somebody said that name, so nobody will find out another one
  else
    redis.call('HSET', key('model', model), 'name_unknown_until_ms', int(NOW + o.name_unknown_ms))
  end
end

local fields = o.fields
fields.error_type = o.error_type
fields.error_detail = o.detail
fields.settled = int(o.attempt)
fields.router = o.router
local tries = job.tries + o.charge
fields.tries = int(tries)
local state = o.kind
if o.kind == 'retry' or o.kind == 'released' then
  if job.cancel_requested_ms then
    state = STATE.cancelled
  elseif tonumber(job.deadline_ms) <= NOW then
    state = STATE.expired
  elseif tries >= tonumber(job.max_attempts) then
    state = STATE.dead
  else
    state = STATE.queued
  end
end
fields.settled_as = string.upper(state)
local event_fields = {'model', model, 'router', job.router, 'error_type', o.error_type, 'reason', o.detail,
  'tries', int(tries), 'charged', int(o.charge)}
if state ~= STATE.queued then
  job.ended_by_holder = true
  end_job(o.id, job, state, fields, event_fields)
  return fields.settled_as
end
local due = 0
if o.delay_ms > 0 then
  due = NOW + o.delay_ms
  fields.due_ms = int(due)
  append(event_fields, {delay_ms = int(o.delay_ms)})
end
local event = o.kind == 'released' and EVENT.requeued or EVENT.retried
requeue(o.id, job, event, fields, due, event_fields)
return 'QUEUED'
