-- Included by claim and submit: start a job by a decision that was made outside, if what it assumed still holds. `o`
-- has nonce, router (who decided), lease_ms, model, backend, reason, registration (its JSON), limit, gpus [{id, limit,
-- level_seq}], and how many WORDS are: fields (of the job's hash), decision (for orch:decisions) and grant
-- (for whoever is told to run it).

local STARTS_WITH = {'in_flight', 'breaker_open_until_ms', 'rate_ms', 'rate_10min', 'rate_6h'}

-- What starting a job on a model needs to know of it.
local function load_model(name)
  return read(key('model', name), STARTS_WITH)
end

-- Why a slot can't be taken now, nil if it can.
local function in_the_way(o, model)
  if o.registration and redis.call('HGET', K.models, o.model) ~= o.registration then return 'MOVED' end
  local in_flight = tonumber(model.in_flight or '0')
  local open_until = tonumber(model.breaker_open_until_ms or '')
  if open_until and (NOW < open_until or in_flight > 0) then return 'BUSY' end
  if in_flight >= o.limit then return 'BUSY' end
  for _, gpu in ipairs(o.gpus) do
    local taken = tonumber(redis.call('HGET', key('placement', gpu.id), 'in_flight') or '0')
    if taken >= gpu.limit then return 'BUSY' end
    local seq = tonumber(redis.call('HGET', key('gpu_level', gpu.id), 'seq') or '0')
    if seq ~= gpu.level_seq then return 'MOVED' end
  end
  return nil
end

-- The words for whoever is told to run it.
local function grant_words(list, o, at)
  local first = at + o.fields + o.decision
  return with_words(list, first, first + o.grant - 1)
end

-- `update`: what else is written of the model.
local function take_slot(o, model, update)
  local names = {}
  for _, gpu in ipairs(o.gpus) do
    redis.call('HINCRBY', key('placement', gpu.id), 'in_flight', 1)
    names[#names + 1] = gpu.id
  end
  update.in_flight = int(tonumber(model.in_flight or '0') + 1)
  hset(key('model', o.model), update)
  return table.concat(names, ',')
end

-- Take the slot and the lease and tell of it; the GPUs whose slots were taken, as they stand in the job. `job` has attempt
-- (the one before), metered, target and request_id; `at` is where the order's words begin.
local function started(o, id, job, model, at)
  job.attempt = job.attempt + 1
  -- A retry is no new demand.
  local slot_gpus = take_slot(o, model, job.attempt == 1 and arrival(model) or {})
  if job.attempt == 1 then count_request(o.model) end
  redis.call('ZADD', K.leases, int(NOW + o.lease_ms), id)
  if is_metered(job) then redis.call('SADD', key('key_running', job.metered), id) end
  emit(EVENT.started, id, STATE.running, job.attempt,
    note_request({'model', o.model, 'backend', o.backend or '', 'gpu', slot_gpus, 'router', o.router, 'reason', o.reason},
      job.request_id))
  decide_on(id, job.target, job.attempt, job.request_id, at + o.fields, at + o.fields + o.decision - 1)
  return slot_gpus
end
