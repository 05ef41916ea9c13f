-- Say why the head of a target waits; silent while the reason's code stays the same.
-- ARGV order(JSON): id, code, reason, words (of the decision). Returns HELD|SAME|GONE.
local o = cjson.decode(ARGV[1])
WORDS = o.words
local job = load_job(o.id)
if not job or job.state ~= STATE.queued then return 'GONE' end
-- A delayed job heads no queue: its hold would stay behind where nothing waits.
if not redis.call('ZSCORE', key('ready', job.target), o.id) then return 'GONE' end
local held = redis.call('HGET', K.holds, job.target)
if held and cjson.decode(held).code == o.code then return 'SAME' end
redis.call('HSET', K.holds, job.target,
  cjson.encode({code = o.code, reason = o.reason, job_id = o.id, since_ms = NOW}))
hset(key('job', o.id), {hold_code = o.code, hold_reason = o.reason})
emit(EVENT.held, o.id, STATE.queued, job.attempt, {'code', o.code, 'reason', o.reason, 'target', job.target})
decide_on(o.id, job.target, job.attempt, job.request_id, 1, #WORDS)
return 'HELD'
