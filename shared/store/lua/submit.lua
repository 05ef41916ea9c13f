-- Accept a job: the bound and the idempotency key are checked here, so that any number of apis can't overshoot.
-- ARGV order(JSON), body. Returns {ACCEPTED|STARTED|DUPLICATE|MISMATCH|FULL|LATE|LIMITED, id, jobs ended a second, now_ms},
-- for LIMITED also the name of the limit and, of the one that knows, in how many ms it has a place; for a job that was
-- queued now (not by an earlier run of this call, and not attached) how many go before it and its queue's hold.
-- An order's `start` (see start.lua) is a decision of the api: where nobody waits and all that it assumed still holds, the
-- job starts at once. An attached one is that api's to run, any other is handed to the router that reads its entry.
local o = cjson.decode(ARGV[1])
WORDS = o.words

local DECIDED_ON = {model = true, agent_type = true, mode = true, priority = true, prompt_tokens = true,
  max_tokens = true, min_context_tokens = true, prefer_llama_cpp = true, fallback = true, attached_to = true}

-- An entry that nobody has to be woken for: it counts as read where all before it are. (What blocks on the group looks
-- for entries behind its last one once this script is through.)
local function is_all_read()
  local groups = redis.pcall('XINFO', 'GROUPS', K.requests)
  if groups.err and string.find(groups.err, 'WRONGTYPE', 1, true) then error(groups) end
  for _, flat in ipairs(groups) do
    local group = record(flat)
    if group.name == GROUP then
      return not redis.call('XREAD', 'COUNT', 1, 'STREAMS', K.requests, group['last-delivered-id']), group['entries-read']
    end
  end
  return false
end

local function add_read_request(entry, all_read, entries_read)
  local id = redis.call('XADD', K.requests, '*', unpack(entry))
  if not all_read then return end
  if entries_read then
    redis.call('XGROUP', 'SETID', K.requests, GROUP, id, 'ENTRIESREAD', entries_read + 1)
  else
    redis.call('XGROUP', 'SETID', K.requests, GROUP, id)
  end
end

-- Each sweeps every second.
local function a_router_lives()
  local last = redis.call('HGET', K.swept, 'last_ms')
  return last and NOW - tonumber(last) <= SWEEPS_STOOD_STILL_MS
end

-- A longer body is fetched by whoever needs it: the stream keeps its entries long after.
local BODY_IN_ENTRY = 2048

-- The entry by which a router gets a job that it only has to run.
local function handed(entry, deadline)
  append(entry, {state = STATE.running, attempt = 1, deadline_ms = deadline})
  if #ARGV[2] <= BODY_IN_ENTRY then append(entry, {body = ARGV[2]}) end
  return grant_words(entry, o.start, o.fields + 1)
end

local function known_as()
  local job = redis.call('HMGET', key('job', o.id), 'state', 'nonce')
  return o.start and job[1] == STATE.running and job[2] == o.start.nonce and 'STARTED' or 'ACCEPTED'
end

-- What starts the job at once, nil if it has to queue: whoever waits goes first, and a router decides.
local function starter(waiting)
  local s = o.start
  if not s or waiting > 0 then return nil end
  if not attached_to(o) and not a_router_lives() then return nil end
  local model = load_model(s.model)
  if in_the_way(s, model) then return nil end
  return function(place, deadline, event)
    local job = {attempt = 0, metered = o.metered, target = o.target, request_id = o.request_id}
    local slot_gpus = started(s, o.id, job, model, o.fields + 1)
    -- The words of the decision's fields follow those of the job's.
    redis.call('HSET', key('job', o.id), 'state', STATE.running, 'attempt', '1', 'tries', '0', 'place', place,
      'score', place, 'submitted_ms', NOW_MS, 'started_ms', NOW_MS, 'deadline_ms', deadline, 'queued_event', event,
      'decision_model', s.model, 'nonce', s.nonce, 'router', attached_to(o) and s.router or '', 'slot_gpus', slot_gpus,
      unpack(WORDS, 1, o.fields + s.fields))
  end
end

if redis.call('EXISTS', key('job', o.id)) == 1 then return {known_as(), o.id, '0', NOW_MS} end
-- A Redis that stood still reads what its clients have given up on: they were told that it was not accepted.
if NOW > o.not_after_ms then return {'LATE', '', '0', NOW_MS} end
if o.idempotency then
  local known = redis.call('GET', key('idempotency', o.idempotency))
  if known then
    local id, digest = string.match(known, '^(%S+) (%S*)$')
    if redis.call('EXISTS', key('job', id)) == 1 then
      return {digest == o.digest and 'DUPLICATE' or 'MISMATCH', id, '0', NOW_MS}
    end
  end
end
local waiting = queued_count()
if waiting >= o.bound then return {'FULL', '', tostring(drain_rate()), NOW_MS} end
local limit, wait_ms = reached_limit(o.limits)
if limit then return {'LIMITED', '', tostring(drain_rate()), NOW_MS, limit, wait_ms} end

local start = starter(waiting)
local all_read, entries_read
if start and attached_to(o) then all_read, entries_read = is_all_read() end
check_writable(o, start)
local event, deadline = create_job(o, ARGV[2], start)
count_minute(o.limits, o.id)
if o.idempotency then
  redis.call('SET', key('idempotency', o.idempotency), o.id .. ' ' .. o.digest, 'PX', RETENTION_MS)
end
local entry = {'v', '1', 'type', 'job.request', 'job_id', o.id, 'target', o.target, 'ts_ms', NOW_MS}
note_request(entry, o.request_id)
if start and attached_to(o) then
  add_read_request(append(entry, {state = STATE.running}), all_read, entries_read)
elseif start then
  redis.call('XADD', K.requests, '*', unpack(handed(entry, deadline)))
else
  -- What a router decides on: where nobody else waits it need not look at the queues.
  append(entry, {queued_event = event, deadline_ms = deadline})
  for i = 1, o.fields, 2 do
    if DECIDED_ON[WORDS[i]] and WORDS[i + 1] ~= '' then append(entry, {[WORDS[i]] = WORDS[i + 1]}) end
  end
  redis.call('XADD', K.requests, '*', unpack(entry))
end
if start or attached_to(o) then return {start and 'STARTED' or 'ACCEPTED', o.id, '0', NOW_MS} end
local rank = redis.call('ZRANK', key('ready', o.target), o.id)
return {'ACCEPTED', o.id, '0', NOW_MS, rank, redis.call('HGET', K.holds, o.target) or ''}
