-- Bring registrations in. ARGV order(JSON): entries {name = JSON}, replace_file (drop file entries not named here).
-- Returns the names that changed.
local o = cjson.decode(ARGV[1])
local changed = {}
local known = record(redis.call('HGETALL', K.models))
if o.replace_file then
  for name, raw in pairs(known) do
    if not o.entries[name] and cjson.decode(raw).source == 'file' then
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
