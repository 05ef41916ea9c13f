-- End a queued job that no model could ever serve.
-- ARGV order(JSON): id, code, reason, words (of the decision). Returns REJECTED|GONE.
local o = cjson.decode(ARGV[1])
WORDS = o.words
local job = load_job(o.id)
if not job then return 'GONE' end
if job.state == STATE.failed and job.error_type == o.code then return 'REJECTED' end
if job.state ~= STATE.queued then return 'GONE' end
decide_on(o.id, job.target, job.attempt, job.request_id, 1, #WORDS)
end_job(o.id, job, STATE.failed,
  {error_type = o.code, error_detail = o.reason, decision_action = 'reject', decision_code = o.code,
   decision_reason = o.reason},
  {'error_type', o.code, 'reason', o.reason})
return 'REJECTED'
