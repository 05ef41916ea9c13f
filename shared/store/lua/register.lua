-- Bring registrations in. ARGV order(JSON): entries {name = JSON}, replace_file (drop file entries not named here).
-- Returns the names that changed.
local o = cjson.decode(ARGV[1])
local changed = {}
local known = record(redis.call('HGETALL', K.models))

local function of_file(raw)
  -- Anybody may write into this hash by hand: what can't be read is not from the file.
  local readable, entry = pcall(cjson.decode, raw)
  return readable and type(entry) == 'table' and entry.source == 'file'
end

if o.replace_file then
  for name, raw in pairs(known) do
    if not o.entries[name] and of_file(raw) then
      redis.call('HDEL', K.models, name)
      xadd('control', 'model.removed', {'model', name}, {'source', 'file'})
      changed[#changed + 1] = name
    end
  end
end
for name, raw in pairs(o.entries) do
  if known[name] ~= raw then
    redis.call('HSET', K.models, name, raw)
    xadd('control', 'model.registered', {'model', name}, {'registration', raw})
    changed[#changed + 1] = name
  end
end
return changed
