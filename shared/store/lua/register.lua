-- Bring registrations in. ARGV order(JSON): entries {name = JSON}, replace_file (drop file entries not named here).
-- Returns the names that changed.
local o = cjson.decode(ARGV[1])
local changed = {}
local known = record(redis.call('HGETALL', K.models))

if o.replace_file then
  for name, raw in pairs(known) do
    local entry = entry_of(raw)
    if not o.entries[name] and entry and entry.source == 'file' then
      remove_model(name, 'file')
      changed[#changed + 1] = name
    end
  end
end
for name, raw in pairs(o.entries) do
  if known[name] ~= raw then
    put_model(name, raw)
    changed[#changed + 1] = name
  end
end
return changed
