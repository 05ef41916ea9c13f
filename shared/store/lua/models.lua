-- Included by what writes registrations: what is known of a model comes and goes with its entry in orch:models.

-- A stored registration; nil where there is none, or none that can be read: anybody may write there by hand.
local function entry_of(raw)
  if not raw then return nil end
  local readable, entry = pcall(cjson.decode, raw)
  return readable and type(entry) == 'table' and entry or nil
end

-- What was learned of a server says nothing of another one. Its slots stay: requests in flight give them back.
local function forget_learned(name)
  local gone = {}
  for _, field in ipairs(redis.call('HKEYS', key('model', name))) do
    if field ~= 'in_flight' then gone[#gone + 1] = field end
  end
  if #gone > 0 then redis.call('HDEL', key('model', name), unpack(gone)) end
end

local SERVER = {'backend', 'url', 'port', 'host', 'upstream_name'}

local function same_server(old, new)
  if not old then return false end
  for _, field in ipairs(SERVER) do
    if old[field] ~= new[field] then return false end
  end
  return true
end

local function put_model(name, raw)
  if not same_server(entry_of(redis.call('HGET', K.models, name)), entry_of(raw)) then
    forget_learned(name)
    redis.call('PERSIST', key('model', name))
    -- From here on its first probe is waited for.
    redis.call('HSET', key('model', name), 'registered_ms', NOW_MS)
  end
  redis.call('HSET', K.models, name, raw)
  xadd(K.control, KEEP.control, 'model.registered', {'model', name}, {'registration', raw})
end

-- The hash stays for a while: jobs in flight still end on it, and so does a probe that is under way.
local function remove_model(name, source)
  redis.call('HDEL', K.models, name)
  forget_learned(name)
  redis.call('HSET', key('model', name), 'removed_ms', NOW_MS)
  redis.call('PEXPIRE', key('model', name), RETENTION_MS)
  xadd(K.control, KEEP.control, 'model.removed', {'model', name}, {'source', source})
end
