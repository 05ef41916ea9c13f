-- Included by claim and submit: start a job by a decision that was made outside, if what it assumed still holds. `o`
-- has nonce, router, lease_ms, model, registration (its JSON), limit, gpus [{id, limit, level_seq}], fields (job hash)
-- and decision (flat list for orch:decisions).

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

local function take_slot(o)
  local names = {}
  for _, gpu in ipairs(o.gpus) do
    redis.call('HINCRBY', key('placement', gpu.id), 'in_flight', 1)
    names[#names + 1] = gpu.id
  end
  redis.call('HINCRBY', key('model', o.model), 'in_flight', 1)
  return table.concat(names, ',')
end

-- The fields of a job that starts now; its slot and its lease are taken.
local function started(o, id, job, model)
  local slot_gpus = take_slot(o)
  job.attempt = job.attempt + 1
  -- A retry is no new demand.
  if job.attempt == 1 then
    count_arrival(o.model, model)
    count_request(o.model)
  end
  local fields = o.fields
  fields.state = STATE.running
  fields.decision_model = o.model -- the slot taken above is the one to be given back
  fields.attempt = int(job.attempt)
  fields.nonce = o.nonce
  fields.router = o.router
  fields.slot_gpus = slot_gpus
  fields.started_ms = int(NOW)
  redis.call('ZADD', K.leases, int(NOW + o.lease_ms), id)
  if is_metered(job) then redis.call('SADD', key('key_running', job.metered), id) end
  return fields
end

local function tell_start(o, id, target, fields)
  emit(EVENT.started, id, STATE.running, fields.attempt,
    note_request({'model', o.model, 'backend', fields.decision_backend or '', 'gpu', fields.slot_gpus,
      'router', o.router, 'reason', fields.decision_reason or ''}, fields.request_id))
  decide_on(id, target, fields.attempt, fields.request_id, o.decision)
end
